// The three inputs of the convolution's kernel. Each brings the tile's pixels and a border of one, 32 channels of them,
// into shared memory; outside the map, and beyond the last channel, are zeros.
//
//   start(block)    enqueues the loads of a block of 32 channels
//   finish(block)   what is left to do once they have landed, for all threads to see
//
// The input of block b goes to the buffer b % 2. A slot is a pixel: row * pitch + column from the border's corner.
#pragma once
#include "cuda/conv3x3_tile.cuh"

namespace ddn {

// Thread t takes part t % 4 of the places t / 4, t / 4 + 32, ... of a grid of `columns`, and walks it without dividing.
struct GridWalk {
  int row, column, columns, down, across;

  DDN_DEVICE GridWalk(int first, int columns, int step)
      : row(first / columns), column(first % columns), columns(columns), down(step / columns), across(step % columns) {
  }
  DDN_DEVICE void next() {
    row += down, column += across;
    if (column >= columns) column -= columns, ++row;
  }
};

// Of eight channels those whose switch is `position`, zeros for the others. Channel k's switch: bits 2k and 2k+1.
DDN_DEVICE uint4 switched_to(int position, const uint4& values, uint32_t codes) {
  const uint32_t different = codes ^ 0x5555u * static_cast<uint32_t>(position);
  const uint32_t same = ~(different | different >> 1);  // bit 2k: channel k belongs here
  const auto mask = [same](int k) { return (same >> 2 * k & 1u) * 0xffffu | (same >> (2 * k + 2) & 1u) * 0xffff0000u; };
  return {values.x & mask(0), values.y & mask(2), values.z & mask(4), values.w & mask(6)};
}

template <class Tile>
struct MapInput {
  const Conv3x3Launch& p;
  Shared to;
  Conv3x3Place place;

  DDN_DEVICE MapInput(const Conv3x3Launch& p, Shared memory, const Conv3x3Place& place)
      : p(p), to(memory), place(place) {
  }

  DDN_DEVICE void start(int block) {
    const int thread = not_before(static_cast<int>(threadIdx.x)), part = thread % 4;
    const int channel = block * 32 + part * 8, count = p.in_channels - channel;
    const uint16_t* x = p.x + static_cast<int64_t>(not_before(place.map)) * (p.height * p.width) * p.in_channels;
    const Shared buffer = to + block % 2 * Tile::kInputBytes;
    GridWalk at(thread / 4, 2 * p.columns + 2, not_before(Tile::kThreads / 4));
    DDN_NO_UNROLL
    for (; at.row < 2 * p.rows + 2; at.next()) {
      const int row = place.row - 1 + at.row, column = place.column - 1 + at.column;
      const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(p.height) &&
                          static_cast<unsigned>(column) < static_cast<unsigned>(p.width) && count > 0;
      const uint16_t* from = inside ? x + (row * p.width + column) * p.in_channels + channel : p.x;
      const Shared slot = buffer + slot_offset(at.row * p.pitch + at.column, part);
      if (p.wide_input)
        copy_async<16>(slot, from, inside);
      else
        store_shared16(slot, load_some(from, inside ? count : 0));
    }
  }
  DDN_DEVICE void finish(int) {
  }
};

// A pooled map, unpooled on the way (SPEC identities 7 and 8): the pooled values and their switches are staged, then
// each goes to the one of four pixels that its switch names, zeros to the others.
template <class Tile>
struct PooledInput {
  const Conv3x3Launch& p;
  Shared to;
  Conv3x3Place place;
  int image;  // addresses are computed when needed: the products leave few registers

  DDN_DEVICE PooledInput(const Conv3x3Launch& p, Shared memory, const Conv3x3Place& place)
      : p(p), to(memory), place(place) {
    const int64_t of_pass = p.image_of_pass ? p.image_of_pass[place.map] : place.map;
    require(of_pass >= 0 && of_pass < p.images);
    image = static_cast<int>(of_pass);
  }

  DDN_DEVICE void start(int block) {
    const int thread = not_before(static_cast<int>(threadIdx.x)), part = thread % 4;
    const int channel = block * 32 + part * 8, count = p.in_channels - channel;
    const int height = p.height / 2, width = p.width / 2, bytes = static_cast<int>(switch_bytes(p.in_channels));
    const Shared staged = to + Tile::kStagedAt, staged_switches = to + Tile::kStagedSwitchesAt;
    const uint16_t* x = p.x + static_cast<int64_t>(not_before(place.map)) * (height * width) * p.in_channels;
    const uint8_t* switches = p.switches + static_cast<int64_t>(not_before(image)) * (height * width) * bytes;
    GridWalk at(thread / 4, p.columns + 2, not_before(Tile::kThreads / 4));
    DDN_NO_UNROLL
    for (int pixel = thread / 4; at.row < p.rows + 2; at.next(), pixel += Tile::kThreads / 4) {
      const int row = place.row / 2 - 1 + at.row, column = place.column / 2 - 1 + at.column;
      const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(height) &&
                          static_cast<unsigned>(column) < static_cast<unsigned>(width) && count > 0;
      const int from = inside ? row * width + column : 0;
      const uint16_t* values = inside ? x + from * p.in_channels + channel : p.x;
      if (p.wide_input)
        copy_async<16>(staged + pixel * 64 + part * 16, values, inside);
      else
        store_shared16(staged + pixel * 64 + part * 16, load_some(values, inside ? count : 0));
      const uint8_t* codes = inside ? switches + from * bytes + channel / 4 : p.switches;
      if (p.wide_switches) {
        if (part == 0) copy_async<8>(staged_switches + pixel * 8, codes, inside);
      } else {
        uint32_t two = 0;
        if (inside) two = codes[0] | (count > 4 ? codes[1] << 8 : 0);
        store_shared2(staged_switches + pixel * 8 + part * 2, two);
      }
    }
  }

  DDN_DEVICE void finish(int block) {
    const int thread = not_before(static_cast<int>(threadIdx.x)), part = thread % 4;
    const Shared staged = to + Tile::kStagedAt, staged_switches = to + Tile::kStagedSwitchesAt;
    const Shared buffer = to + block % 2 * Tile::kInputBytes;
    GridWalk at(thread / 4, p.columns + 2, not_before(Tile::kThreads / 4));
    DDN_NO_UNROLL
    for (int pixel = thread / 4; at.row < p.rows + 2; at.next(), pixel += Tile::kThreads / 4) {
      const uint4 values = load_shared16(staged + pixel * 64 + part * 16);
      const uint32_t codes = load_shared2(staged_switches + pixel * 8 + part * 2);
      DDN_UNROLL
      for (int position = 0; position < 4; ++position) {
        const int row = 2 * at.row - 1 + position / 2, column = 2 * at.column - 1 + position % 2;
        if (row < 0 || row > 2 * p.rows + 1 || column < 0 || column > 2 * p.columns + 1) continue;
        store_shared16(buffer + slot_offset(row * p.pitch + column, part), switched_to(position, values, codes));
      }
    }
  }
};

// The first layer: the up to 27 values under the kernel are one block of 32 "channels", tap * I + c. Slot m is the
// tile's pixel m, in the order of the products' rows.
template <class Tile>
struct ImageInput {
  const Conv3x3Launch& p;
  Shared to;
  Conv3x3Place place;

  DDN_DEVICE ImageInput(const Conv3x3Launch& p, Shared memory, const Conv3x3Place& place)
      : p(p), to(memory), place(place) {
  }

  DDN_DEVICE void start(int) {
    p.in_channels == 3 ? load<3>() : load<0>();
  }
  DDN_DEVICE void finish(int) {
  }

 private:
  // Channels: how many, where that is known: divisions by it are products then. 0: what p says.
  template <int Channels>
  DDN_DEVICE void load() {
    const int channels = Channels > 0 ? Channels : p.in_channels, part = static_cast<int>(threadIdx.x) % 4;
    const uint16_t* x = p.x + static_cast<int64_t>(place.map) * p.height * p.width * channels;
    for (int m = static_cast<int>(threadIdx.x) / 4; m < Tile::kPixels; m += Tile::kThreads / 4) {
      const int window = m / 16 * 4 + m % 8 / 2;
      const int y = place.row + window / p.columns * 2 + m % 2, x0 = place.column + window % p.columns * 2 + m / 8 % 2;
      uint32_t word[4] = {};
      DDN_UNROLL
      for (int k = 0; k < 8; ++k) {
        const int tap = (part * 8 + k) / channels, c = (part * 8 + k) % channels;
        const int row = y + tap / 3 - 1, column = x0 + tap % 3 - 1;
        const bool inside = (tap < 9) & (static_cast<unsigned>(row) < static_cast<unsigned>(p.height)) &
                            (static_cast<unsigned>(column) < static_cast<unsigned>(p.width));
        // without a branch, so that all eight are on their way at once
        const uint32_t value = x[inside ? (row * p.width + column) * channels + c : 0];
        word[k / 2] |= (inside ? value : 0u) << 16 * (k % 2);
      }
      store_shared16(to + slot_offset(m, part), {word[0], word[1], word[2], word[3]});
    }
  }
};

template <class Tile>
struct Conv3x3InputOf;
template <class T, Conv3x3TileKind KIND>
struct Conv3x3InputOf<Conv3x3Tile<T, Conv3x3Input::map, KIND>> {
  using type = MapInput<Conv3x3Tile<T, Conv3x3Input::map, KIND>>;
};
template <class T, Conv3x3TileKind KIND>
struct Conv3x3InputOf<Conv3x3Tile<T, Conv3x3Input::pooled, KIND>> {
  using type = PooledInput<Conv3x3Tile<T, Conv3x3Input::pooled, KIND>>;
};
template <class T, Conv3x3TileKind KIND>
struct Conv3x3InputOf<Conv3x3Tile<T, Conv3x3Input::image, KIND>> {
  using type = ImageInput<Conv3x3Tile<T, Conv3x3Input::image, KIND>>;
};

}  // namespace ddn
