// How one layer of conv3x3 is shared out among blocks: which tile of outputs, its shape on the map, how many slices of
// the input channels. Plain arithmetic on the host, decided at every launch.
//
// A tile is `windows` 2x2 windows of pixels by `outputs` channels. Of the portable kernel which windows is free: `rows`
// x `columns` of them, as many as fit, chosen so that the fewest tiles cover a map. The network's maps are 10, 20, 40,
// 80 and 160 windows wide; tiles of 40 cover them as 4 x 10 (of 10 x 10 windows they waste a sixth), tiles of 20 as 2 x
// 10 without a rest. Of sm_90a's kernel the shape is the tile's (conv3x3_wgmma_tile.cuh): tall and wide ones cover maps
// of 80 and up without a rest, wide ones those of 40, compact ones (two a map) waste a sixth of 20 x 20. A grid too
// small for the device is cut along the input channels: each slice sums its share and leaves the sums, in float32, for
// the last to finish; so their order, and with it every bit of the result, depends on the shapes alone.
#pragma once
#include <algorithm>
#include <cstdint>

namespace ddn {

struct Conv3x3TileSize {
  int windows, outputs;  // of a tile
  int slots;             // pixels, halo included, that its input may take in shared memory
  int staged;            // pooled pixels, likewise
};

// The first three are the portable kernel's, the others sm_90a's.
enum class Conv3x3TileKind { large, narrow, small, tall, wide, compact };

constexpr Conv3x3TileSize kConv3x3Tiles[] = {{40, 128, 260, 100}, {40, 64, 260, 100}, {20, 128, 144, 64},
                                             {80, 64, 401, 0},    {80, 64, 425, 0},   {60, 64, 313, 0}};

constexpr const Conv3x3TileSize& tile_size(Conv3x3TileKind kind) {
  return kConv3x3Tiles[static_cast<int>(kind)];
}

// Strips of 8 pixels' width beside each other, and their height, of a tile of sm_90a's.
struct Conv3x3WgmmaShape {
  int strips, rows;
};

constexpr Conv3x3WgmmaShape wgmma_shape(Conv3x3TileKind kind) {
  return kind == Conv3x3TileKind::tall   ? Conv3x3WgmmaShape{2, 20}
         : kind == Conv3x3TileKind::wide ? Conv3x3WgmmaShape{5, 8}
                                         : Conv3x3WgmmaShape{3, 10};
}

constexpr bool is_wgmma(Conv3x3TileKind kind) {
  return kind >= Conv3x3TileKind::tall;
}

struct Conv3x3Plan {
  Conv3x3TileKind kind;
  int rows, columns;            // of a tile, in windows
  int tile_rows, tile_columns;  // tiles of a map
  int out_tiles;
  int slices;

  // Pixels from one row to the next in the portable kernel's shared memory. Odd, so that the eight pixels an
  // instruction reads at once, two rows of four windows, lie in different banks.
  int pitch() const {
    return 2 * columns + 3;
  }
  int64_t tiles(int64_t maps) const {
    return maps * tile_rows * tile_columns * out_tiles;
  }
};

namespace plan {

constexpr int64_t up(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

// The shape of a tile that needs the fewest tiles, then the fewest slots.
inline Conv3x3Plan shape(Conv3x3TileKind kind, int64_t height, int64_t width) {
  const Conv3x3TileSize& size = tile_size(kind);
  const int high = static_cast<int>(up(height, 2)), wide = static_cast<int>(up(width, 2));
  if (is_wgmma(kind)) {
    const int rows = wgmma_shape(kind).rows / 2, columns = wgmma_shape(kind).strips * 4;
    return {kind, rows, columns, static_cast<int>(up(high, rows)), static_cast<int>(up(wide, columns)), 0, 1};
  }
  Conv3x3Plan best{};
  int64_t best_tiles = INT64_MAX, best_slots = 0;
  for (int columns = 1; columns <= std::min(wide, size.windows); ++columns) {
    int rows = std::min(high, size.windows / columns);
    const auto slots = [&] { return (2 * rows + 2) * (2 * columns + 3); };
    while (rows > 0 && (slots() > size.slots || (rows + 2) * (columns + 2) > size.staged)) --rows;
    if (rows == 0) continue;
    const int64_t down = up(high, rows), across = up(wide, columns);
    if (down * across > best_tiles || (down * across == best_tiles && slots() >= best_slots)) continue;
    best_tiles = down * across, best_slots = slots();
    best = {kind, rows, columns, static_cast<int>(down), static_cast<int>(across), 0, 1};
  }
  return best;
}

}  // namespace plan

// A plan of one kind of tile, in one slice.
inline Conv3x3Plan plan_conv3x3_of(Conv3x3TileKind kind, int64_t height, int64_t width, int64_t out_channels) {
  Conv3x3Plan plan = plan::shape(kind, height, width);
  plan.out_tiles = static_cast<int>(plan::up(out_channels, tile_size(kind).outputs));
  return plan;
}

// For `blocks` input blocks of 32 channels and T = `taps`, on a device of `multiprocessors`. The unit of cost is what
// 64 x 128 products of 32 take; the weights of the terms are estimates: a block's start and end cost as much as four,
// leaving and fetching a slice's sums two each, and warps with half the outputs reach five sixths of the rate.
inline Conv3x3Plan plan_conv3x3(int64_t maps, int64_t height, int64_t width, int64_t out_channels, int64_t blocks,
                                int64_t taps, int multiprocessors) {
  Conv3x3Plan best{};
  double least = 0;
  for (const auto kind : {Conv3x3TileKind::large, Conv3x3TileKind::narrow, Conv3x3TileKind::small}) {
    if (taps == 1 && kind != Conv3x3TileKind::narrow) continue;
    const Conv3x3TileSize& size = tile_size(kind);
    Conv3x3Plan plan = plan_conv3x3_of(kind, height, width, out_channels);
    const double step = size.windows * 4 * size.outputs / 8192.0 * (kind == Conv3x3TileKind::large ? 1.0 : 1.2);
    const double exchange = size.windows * 4 * size.outputs / 8192.0 * 2;
    for (int64_t slices = 1; slices <= std::min<int64_t>(blocks, 16); ++slices) {
      if (slices > 1 && plan.tiles(maps) * slices > 2 * multiprocessors) break;
      const double waves = static_cast<double>(plan::up(plan.tiles(maps) * slices, multiprocessors));
      const double cost = waves * (4 + static_cast<double>(plan::up(blocks, slices) * taps) * step) +
                          (slices > 1 ? static_cast<double>(slices + 1) * exchange : 0.0);
      if (best.out_tiles && cost >= least) continue;
      least = cost, best = plan, best.slices = static_cast<int>(slices);
    }
  }
  return best;
}

// The same for sm_90a's kernel. The unit of cost is a cycle of the matrix units; estimates too: a block's start and end
// cost 3,000, of which all but 500 pass while others multiply; one block alone reaches 85 % of the rate two do; a
// multiprocessor exchanges 48 bytes of slices' sums a cycle.
inline Conv3x3Plan plan_conv3x3_wgmma(int64_t maps, int64_t height, int64_t width, int64_t out_channels, int64_t blocks,
                                      int multiprocessors) {
  Conv3x3Plan best{};
  double least = 0;
  for (const auto kind : {Conv3x3TileKind::tall, Conv3x3TileKind::wide, Conv3x3TileKind::compact}) {
    const Conv3x3TileSize& size = tile_size(kind);
    Conv3x3Plan plan = plan_conv3x3_of(kind, height, width, out_channels);
    const double tap = size.windows * 4, exchange = size.windows * 4 * size.outputs * 4 / 48.0;
    for (int64_t slices = 1; slices <= std::min<int64_t>(blocks, 16); ++slices) {
      if (slices > 1 && plan.tiles(maps) * slices > 2 * multiprocessors) break;
      const double waves = static_cast<double>(plan::up(plan.tiles(maps) * slices, multiprocessors));
      const double products = static_cast<double>(plan::up(blocks, slices) * 9) * tap;
      const double cost = waves * (products * (waves > 1 ? 1 : 1 / 0.85) + 500) + 2500 +
                          (slices > 1 ? static_cast<double>(slices + 1) * exchange : 0.0);
      if (best.out_tiles && cost >= least) continue;
      least = cost, best = plan, best.slices = static_cast<int>(slices);
    }
  }
  return best;
}

}  // namespace ddn
