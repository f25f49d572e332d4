// What the producers of the convolution's kernel for sm_90a do: 96 threads bring the input, a map or a pooled one that
// is unpooled on the way, one thread the weights.
//
//   start(block)       enqueues what can be before a buffer is free
//   finish(block, to)  brings the tile's pixels and a border of one, 32 channels of them, to a buffer of four planes;
//   when
//                      it returns, this thread's share is there
// Outside the map, and beyond the last channel, are zeros. Channels come in eights, of a pooled map in blocks of 32;
// other layers go to the portable kernel.
//
// Thread t takes part t % 4 (8 channels) of every 24th pixel; two quads of lanes that write at once take pixels 4
// apart.
#pragma once
#include "cuda/conv3x3_input.cuh"
#include "cuda/conv3x3_wgmma_tile.cuh"

namespace ddn {

template <class Tile>
DDN_DEVICE Shared slot_of(Shared buffer, int part, int row, int column) {
  return buffer + part * Tile::kPlaneBytes + (row * Tile::kPitch + column) * 16;
}

template <class Tile>
struct WgmmaMapInput {
  const Conv3x3Launch& p;
  Conv3x3Place place;
  int thread;

  DDN_DEVICE void start(int) const {
  }
  DDN_DEVICE void finish(int block, Shared to) const {
    const int part = not_before(thread) % 4, channel = block * 32 + part * 8;
    const int64_t map = not_before(place.map);
    const uint16_t* x = p.x + map * (p.height * p.width) * p.in_channels + channel;
    const int quad = not_before(thread) / 4, first = quad / 8 * 8 + quad % 2 * 4 + quad % 8 / 2;
    GridWalk at(first, Tile::kPitch, Tile::kInputThreads / 4);
    DDN_NO_UNROLL
    for (; at.row < Tile::kInputRows; at.next()) {
      const int row = place.row - 1 + at.row, column = place.column - 1 + at.column;
      const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(p.height) &&
                          static_cast<unsigned>(column) < static_cast<unsigned>(p.width) && channel < p.in_channels;
      const uint16_t* from = inside ? x + (row * p.width + column) * p.in_channels : p.x;
      copy_async<16>(slot_of<Tile>(to, part, at.row, at.column), from, inside);
    }
    commit_copies();
    wait_for_copies<0>();
  }
};

// SPEC identities 7 and 8. A thread's values and its quad's switches are staged, then spread by the same quad.
template <class Tile>
struct WgmmaPooledInput {
  const Conv3x3Launch& p;
  Conv3x3Place place;
  int thread, image;
  Shared staged, staged_switches;  // of this thread, for its first pixel; of its quad

  DDN_DEVICE WgmmaPooledInput(const Conv3x3Launch& p, const Conv3x3Place& place, int thread, Shared memory)
      : p(p),
        place(place),
        thread(thread),
        staged(memory + Tile::kStagedAt + thread * 16),
        staged_switches(memory + Tile::kStagedSwitchesAt + thread / 4 * 8) {
    const int64_t of_pass = p.image_of_pass ? p.image_of_pass[place.map] : place.map;
    require(of_pass >= 0 && of_pass < p.images);
    image = static_cast<int>(of_pass);
  }

  // Of the pooled pixels of the tile and a border of one.
  DDN_DEVICE GridWalk walk() const {
    const int quad = not_before(thread) / 4;
    return {quad / 4 * 4 + quad % 2 * 2 + quad % 4 / 2, Tile::kPooledColumns, Tile::kInputThreads / 4};
  }

  DDN_DEVICE void start(int block) const {
    const int part = not_before(thread) % 4, channel = block * 32 + part * 8;
    const int height = p.height / 2, width = p.width / 2, bytes = p.in_channels / 4;
    const uint16_t* x = p.x + static_cast<int64_t>(not_before(place.map)) * (height * width) * p.in_channels + channel;
    const uint8_t* switches = p.switches + static_cast<int64_t>(not_before(image)) * (height * width) * bytes;
    Shared to = staged, to_switches = staged_switches;
    synchronize_warp();  // the quad has read what was staged before
    DDN_NO_UNROLL
    for (GridWalk at = walk(); at.row < Tile::kPooledRows; at.next()) {
      const int row = place.row / 2 - 1 + at.row, column = place.column / 2 - 1 + at.column;
      const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(height) &&
                          static_cast<unsigned>(column) < static_cast<unsigned>(width);
      const int pixel = inside ? row * width + column : 0;
      copy_async<16>(to, inside ? x + pixel * p.in_channels : p.x, inside);
      if (part == 0) copy_async<8>(to_switches, inside ? switches + pixel * bytes + block * 8 : p.switches, inside);
      to += Tile::kInputThreads * 16, to_switches += Tile::kInputThreads / 4 * 8;
    }
    commit_copies();
  }

  DDN_DEVICE void finish(int, Shared to) const {
    const int part = not_before(thread) % 4;
    Shared from = staged, from_switches = staged_switches + part * 2;
    wait_for_copies<0>();
    synchronize_warp();
    DDN_NO_UNROLL
    for (GridWalk at = walk(); at.row < Tile::kPooledRows; at.next()) {
      const uint4 values = load_shared16(from);
      const uint32_t codes = load_shared2(from_switches);
      DDN_UNROLL
      for (int position = 0; position < 4; ++position) {
        const int row = 2 * at.row - 1 + position / 2, column = 2 * at.column - 1 + position % 2;
        if (static_cast<unsigned>(row) < static_cast<unsigned>(Tile::kInputRows) &&
            static_cast<unsigned>(column) < static_cast<unsigned>(Tile::kPitch))
          store_shared16(slot_of<Tile>(to, part, row, column), switched_to(position, values, codes));
      }
      from += Tile::kInputThreads * 16, from_switches += Tile::kInputThreads / 4 * 8;
    }
  }
};

template <class Tile, class Input>
DDN_DEVICE void bring_input(const Input& input, const Conv3x3Barriers<Tile>& barriers, Shared memory, int begin,
                            int end) {
  input.start(begin);
  DDN_NO_UNROLL
  for (int block = begin; block < end; ++block) {
    const int count = block - begin, buffer = count % 2;
    wait_for_phase(barriers.input_empty(buffer), (count / 2 & 1) ^ 1);
    input.finish(block, memory + buffer * Tile::kInputBytes);
    fence_for_products();
    arrive(barriers.input_full(buffer));
    if (block + 1 < end) input.start(block + 1);
  }
}

// One row of the kernel of one block of channels is `kOutBlockBytes` that follow those before them, in each out block.
template <class Tile>
DDN_DEVICE void bring_weights(const Conv3x3Launch& p, const Conv3x3Barriers<Tile>& barriers, Shared memory,
                              const Conv3x3Place& place, int begin, int end) {
  constexpr int kWords = Tile::kOutBlockBytes / 4;
  const int first = place.output / 32, left = (p.out_channels + 31) / 32 - first, out_blocks = left < 2 ? left : 2;
  const int64_t stride = static_cast<int64_t>(p.in_blocks) * 3 * kWords;
  const uint32_t* from = p.weight + first * stride + static_cast<int64_t>(begin) * 3 * kWords;
  DDN_NO_UNROLL
  for (int step = 0; step < (end - begin) * 3; ++step, from += kWords) {
    const int stage = step % Tile::kStages;
    wait_for_phase(barriers.weights_empty(stage), (step / Tile::kStages & 1) ^ 1);
    arrive_expecting(barriers.weights_full(stage), out_blocks * Tile::kOutBlockBytes);
    const Shared to = memory + Tile::kWeightsAt + stage * Tile::kWeightBytes;
    for (int block = 0; block < out_blocks; ++block)
      copy_bulk(to + block * Tile::kOutBlockBytes, from + block * stride, Tile::kOutBlockBytes,
                barriers.weights_full(stage));
  }
}

}  // namespace ddn
