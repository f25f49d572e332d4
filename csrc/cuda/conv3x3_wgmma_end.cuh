// The three ends of the convolution's kernel for sm_90a, from a thread's sums: bias and ReLU, then the map; or 2x2 max
// pooling and switches; or a 1x1 convolution to one channel.
//
// Rows of the products are outputs, so permuted (conv3x3_wgmma.cuh) that a lane holds two neighbouring ones, 2*(lane/4)
// and the next of its warp's 16. Columns are pixels, eight of a row after eight of the row before: value 4*j + 2*h + e
// of a strip is output h at row j, column 2*(lane%4) + e. So a lane holds whole windows, and writes 4 bytes of a pixel;
// eight lanes together 32.
#pragma once
#include "cuda/conv3x3_end.cuh"
#include "cuda/conv3x3_wgmma_tile.cuh"

namespace ddn {

template <class Tile>
using WgmmaSums = float[Tile::kStrips][Tile::kValues];

template <class Tile>
struct Conv3x3WgmmaEnd {
  const Conv3x3Launch& p;
  Conv3x3Place place;
  int lane, warp;
  int output;  // the first of two
  float bias[2];

  DDN_DEVICE Conv3x3WgmmaEnd(const Conv3x3Launch& p, const Conv3x3Place& place, int thread)
      : p(p), place(place), lane(thread % 32), warp(thread / 32), output(place.output + warp * 16 + lane / 4 * 2) {
    load_two(bias, p.bias);
  }

  DDN_DEVICE void load_two(float (&value)[2], const float* from) const {
    DDN_UNROLL
    for (int h = 0; h < 2; ++h) value[h] = output + h < p.out_channels ? from[output + h] : 0.0f;
  }
  // After bias and ReLU, which keeps NaN.
  DDN_DEVICE float result(const WgmmaSums<Tile>& sums, int strip, int row, int h, int e) const {
    const float value = sums[strip][row * 4 + 2 * h + e] + bias[h];
    return value <= 0 ? 0.0f : value;
  }
  DDN_DEVICE uint32_t narrow(const WgmmaSums<Tile>& sums, int strip, int row, int e) const {
    return narrow_two<typename Tile::T>(result(sums, strip, row, 0, e), result(sums, strip, row, 1, e));
  }

  DDN_DEVICE void map(const WgmmaSums<Tile>& sums) const {
    if (output >= p.out_channels) return;
    const int rows = p.height - place.row, line = p.width * p.out_channels;
    DDN_UNROLL
    for (int k = 0; k < Tile::kStrips * 2; ++k) {
      const int strip = k / 2, e = k % 2, column = place.column + strip * 8 + lane % 4 * 2 + e;
      if (column >= p.width) continue;
      uint16_t* y = p.y + (static_cast<int64_t>(place.map) * p.height + place.row) * line;
      y += column * p.out_channels + output;
      DDN_UNROLL
      for (int row = 0; row < Tile::kRows; ++row, y += line)
        if (row < rows) store4(y, narrow(sums, strip, row, e));
    }
  }

  DDN_DEVICE void pooled(const WgmmaSums<Tile>& sums) const {
    const int width = p.width / 2, rows = p.height / 2 - place.row / 2, bytes = p.out_channels / 4;
    const int64_t first = (static_cast<int64_t>(place.map) * (p.height / 2) + place.row / 2) * width;
    DDN_UNROLL
    for (int strip = 0; strip < Tile::kStrips; ++strip) {
      const int column = place.column / 2 + strip * 4 + lane % 4;
      const bool real = output < p.out_channels && column < width;
      uint16_t* y = p.y + (first + column) * p.out_channels + output;
      uint8_t* switches = p.y_switches + (first + column) * bytes + output / 4;
      DDN_UNROLL
      for (int row = 0; row < Tile::kRows / 2; ++row, y += width * p.out_channels, switches += width * bytes) {
        Winners<1> best{{narrow(sums, strip, 2 * row, 0)}, 0x0u}, lower{{narrow(sums, strip, 2 * row + 1, 0)}, 0xau};
        best.against({{narrow(sums, strip, 2 * row, 1)}, 0x5u});
        lower.against({{narrow(sums, strip, 2 * row + 1, 1)}, 0xfu});
        best.against(lower);
        const uint32_t others = shuffle_xor(best.codes, 4);  // of the next two outputs, where lane / 4 is even
        if (!real || row >= rows) continue;
        store4(y, best.value[0]);
        if (lane / 4 % 2 == 0) *switches = static_cast<uint8_t>(best.codes | others << 4);
      }
    }
  }

  // All outputs lie in this block; a warp's share of them goes to `memory`, where the shares are added up.
  DDN_DEVICE void score(const WgmmaSums<Tile>& sums, Shared memory) const {
    float weight[2];
    load_two(weight, p.score_weight);
    const bool real = output < p.out_channels;  // sums of others may be anything
    DDN_UNROLL
    for (int k = 0; k < Tile::kStrips * Tile::kRows * 2; ++k) {
      const int strip = k / (Tile::kRows * 2), row = k / 2 % Tile::kRows, e = k % 2;
      float sum = result(sums, strip, row, 0, e) * weight[0] + result(sums, strip, row, 1, e) * weight[1];
      if (!real) sum = 0;
      sum += shuffle_xor(sum, 4);
      sum += shuffle_xor(sum, 8);
      sum += shuffle_xor(sum, 16);
      uint32_t bits;
      memcpy(&bits, &sum, sizeof bits);
      const int pixel = (strip * Tile::kRows + row) * 8 + lane % 4 * 2 + e;
      if (lane < 4) store_shared4(memory + (warp * Tile::kPixels + pixel) * 4, bits);
    }
    synchronize_some<1, Tile::kConsumers>();
    for (int pixel = warp * 32 + lane; pixel < Tile::kPixels; pixel += Tile::kConsumers) {
      float sum = p.score_bias[0];
      DDN_UNROLL
      for (int w = 0; w < 4; ++w) {
        const uint32_t bits = load_shared4(memory + (w * Tile::kPixels + pixel) * 4);
        float share;
        memcpy(&share, &bits, sizeof bits);
        sum += share;
      }
      const int strip = pixel / (Tile::kRows * 8), row = place.row + pixel / 8 % Tile::kRows;
      const int column = place.column + strip * 8 + pixel % 8;
      if (row < p.height && column < p.width)
        p.score[(static_cast<int64_t>(place.map) * p.height + row) * p.width + column] = sum;
    }
  }
};

}  // namespace ddn
