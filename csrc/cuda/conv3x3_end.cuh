// The three ends of the convolution's kernel, from a warp's sums: bias and ReLU, then the map; or 2x2 max pooling and
// switches; or a 1x1 convolution to one channel.
//
// Rows of the products are pixels in the order of windows: row r of 16 is window r % 8 / 2, its pixel (r % 2, r / 8).
// Columns are outputs so permuted (conv3x3.cuh) that a lane's sums of a group of 32 are eight neighbouring channels.
// So a lane holds the two pixels of one row of a window, 16 bytes each, and the lane four further the other row.
#pragma once
#include "cuda/conv3x3_tile.cuh"

namespace ddn {

template <class Tile>
using Conv3x3Sums = float[Tile::kRowTiles][Tile::kGroups * 4][4];

// Two channels a word, and which of the pixels compared so far each came from.
template <int WORDS>
struct Winners {
  uint32_t value[WORDS];
  uint32_t codes;  // channel k in bits 2k and 2k+1

  // After ReLU, 16-bit floats order as unsigned integers do. The first of equals stays.
  DDN_DEVICE void against(const Winners& other) {
    DDN_UNROLL
    for (int w = 0; w < WORDS; ++w) {
      const uint32_t mine = value[w], theirs = other.value[w];
      const bool low = (theirs & 0xffffu) > (mine & 0xffffu), high = theirs >> 16 > mine >> 16;
      const uint32_t values = (low ? 0xffffu : 0u) | (high ? 0xffff0000u : 0u);
      const uint32_t places = (low ? 3u : 0u) << 4 * w | (high ? 12u : 0u) << 4 * w;
      value[w] = (mine & ~values) | (theirs & values);
      codes = (codes & ~places) | (other.codes & places);
    }
  }
};

DDN_DEVICE void store_some(uint16_t* at, const uint32_t (&word)[4], int count) {
  DDN_UNROLL
  for (int k = 0; k < 8; ++k)
    if (k < count) at[k] = static_cast<uint16_t>(word[k / 2] >> 16 * (k % 2));
}

template <class Tile>
struct Conv3x3End {
  const Conv3x3Launch& p;
  Conv3x3Place place;
  int lane, down, across;

  DDN_DEVICE Conv3x3End(const Conv3x3Launch& p, const Conv3x3Place& place, int thread)
      : p(p),
        place(place),
        lane(thread % 32),
        down(thread / 32 % Tile::kWarpsDown),
        across(thread / 32 / Tile::kWarpsDown) {
  }

  DDN_DEVICE int window_of(int row_tile) const {
    return (down * Tile::kRowTiles + row_tile) * 4 + lane / 8;
  }
  DDN_DEVICE int first_output(int group) const {
    return place.output + (across * Tile::kGroups + group) * 32 + lane % 4 * 8;
  }
  DDN_DEVICE void load_eight(float (&value)[8], const float* from, int first) const {
    DDN_UNROLL
    for (int k = 0; k < 8; ++k) value[k] = first + k < p.out_channels ? from[first + k] : 0.0f;
  }
  // Channel k of the window's pixel (this lane's row, `column`), after bias and ReLU, which keeps NaN.
  static DDN_DEVICE float result(const Conv3x3Sums<Tile>& sums, int row_tile, int group, int column, int k,
                                 const float (&bias)[8]) {
    const float value = sums[row_tile][group * 4 + k % 4][2 * column + k / 4] + bias[k];
    return value <= 0 ? 0.0f : value;
  }
  static DDN_DEVICE void narrow_eight(uint32_t (&word)[4], const Conv3x3Sums<Tile>& sums, int row_tile, int group,
                                      int column, const float (&bias)[8]) {
    DDN_UNROLL
    for (int w = 0; w < 4; ++w)
      word[w] = narrow_two<typename Tile::T>(result(sums, row_tile, group, column, 2 * w, bias),
                                             result(sums, row_tile, group, column, 2 * w + 1, bias));
  }
  DDN_DEVICE void store_eight(uint16_t* at, const uint32_t (&word)[4], int first) const {
    if (p.wide_output && first < p.out_channels)
      store16(at, {word[0], word[1], word[2], word[3]});
    else
      store_some(at, word, p.out_channels - first);
  }

  DDN_DEVICE void map(const Conv3x3Sums<Tile>& sums) const {
    uint16_t* y = p.y + static_cast<int64_t>(place.map) * p.height * p.width * p.out_channels;
    DDN_UNROLL
    for (int group = 0; group < Tile::kGroups; ++group) {
      const int first = first_output(group);
      float bias[8];
      load_eight(bias, p.bias, first);
      DDN_UNROLL
      for (int i = 0; i < Tile::kRowTiles; ++i) {
        const int window = window_of(i), row = place.row + window / p.columns * 2 + lane / 4 % 2;
        DDN_UNROLL
        for (int dx = 0; dx < 2; ++dx) {
          const int column = place.column + window % p.columns * 2 + dx;
          uint32_t word[4];
          narrow_eight(word, sums, i, group, dx, bias);
          if (window < p.rows * p.columns && row < p.height && column < p.width)
            store_eight(y + (row * p.width + column) * p.out_channels + first, word, first);
        }
      }
    }
  }

  DDN_DEVICE void pooled(const Conv3x3Sums<Tile>& sums) const {
    const int height = p.height / 2, width = p.width / 2, bytes = static_cast<int>(switch_bytes(p.out_channels));
    const int64_t pixels = static_cast<int64_t>(place.map) * height * width;
    uint16_t* y = p.y + pixels * p.out_channels;
    uint8_t* switches = p.y_switches + pixels * bytes;
    DDN_UNROLL
    for (int group = 0; group < Tile::kGroups; ++group) {
      const int first = first_output(group);
      float bias[8];
      load_eight(bias, p.bias, first);
      DDN_UNROLL
      for (int i = 0; i < Tile::kRowTiles; ++i) {
        Winners<4> best, other;
        narrow_eight(best.value, sums, i, group, 0, bias);
        narrow_eight(other.value, sums, i, group, 1, bias);
        best.codes = 0x0000u, other.codes = 0x5555u;
        best.against(other);
        DDN_UNROLL
        for (int w = 0; w < 4; ++w) other.value[w] = shuffle_xor(best.value[w], 4);
        other.codes = shuffle_xor(best.codes, 4) | 0xaaaau;
        best.against(other);
        const int window = window_of(i);
        const int row = place.row / 2 + window / p.columns, column = place.column / 2 + window % p.columns;
        if (lane / 4 % 2 || window >= p.rows * p.columns || row >= height || column >= width) continue;
        const int pixel = row * width + column;
        store_eight(y + pixel * p.out_channels + first, best.value, first);
        uint8_t* to = switches + pixel * bytes + first / 4;
        if (first < p.out_channels) to[0] = static_cast<uint8_t>(best.codes);
        if (first + 4 < p.out_channels) to[1] = static_cast<uint8_t>(best.codes >> 8);
      }
    }
  }

  // All outputs lie in this block; a warp's share of them goes to `memory`, where the shares are added up.
  DDN_DEVICE void score(const Conv3x3Sums<Tile>& sums, Shared memory) const {
    float part[Tile::kRowTiles][2] = {};
    DDN_UNROLL
    for (int group = 0; group < Tile::kGroups; ++group) {
      const int first = first_output(group);
      float bias[8], weight[8];
      load_eight(bias, p.bias, first);
      load_eight(weight, p.score_weight, first);
      DDN_UNROLL
      for (int k = 0; k < 8 * 2 * Tile::kRowTiles; ++k) {
        const int i = k / 16, dx = k / 8 % 2;
        part[i][dx] += result(sums, i, group, dx, k % 8, bias) * weight[k % 8];
      }
    }
    DDN_UNROLL
    for (int k = 0; k < 2 * Tile::kRowTiles; ++k) {
      const int i = k / 2, dx = k % 2;
      float sum = part[i][dx];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const int pixel = (window_of(i) * 2 + lane / 4 % 2) * 2 + dx;
      uint32_t bits;
      memcpy(&bits, &sum, sizeof bits);
      if (lane % 4 == 0) store_shared4(memory + (across * Tile::kPixels + pixel) * 4, bits);
    }
    synchronize_block();
    for (int pixel = static_cast<int>(threadIdx.x); pixel < Tile::kPixels; pixel += Tile::kThreads) {
      float sum = p.score_bias[0];
      DDN_UNROLL
      for (int w = 0; w < Tile::kWarpsAcross; ++w) {
        const uint32_t bits = load_shared4(memory + (w * Tile::kPixels + pixel) * 4);
        float share;
        memcpy(&share, &bits, sizeof bits);
        sum += share;
      }
      const int window = pixel / 4, row = place.row + window / p.columns * 2 + pixel / 2 % 2;
      const int column = place.column + window % p.columns * 2 + pixel % 2;
      if (window < p.rows * p.columns && row < p.height && column < p.width)
        p.score[(static_cast<int64_t>(place.map) * p.height + row) * p.width + column] = sum;
    }
  }
};

}  // namespace ddn
