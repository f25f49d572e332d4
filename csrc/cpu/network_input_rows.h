// network_input: an image as the network takes it (SPEC section 1): padded with zeros at the bottom and right to a
// square, resized to S x S by MATLAB's bilinear filter, blue before red, minus the mean. A row of the result at a time:
// the rows under the filter are added up in double, colours side by side as they lie, and that row is resized across,
// a pixel's three colours in one vector. The square is never made: a row of padding adds nothing, a column of padding
// is a zero that stands behind the sums. Sums of double leave a constant area constant once they are rounded to float,
// and so the ties of the poolings in it exact, as MATLAB's do. Bytes: H*W*3 read S/H times the filter's reach.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/network_input.h"
#include "cpu/scratch.h"
#include "cpu/vec.h"

namespace ddn::cpu {
namespace {

constexpr double kMean[] = {122.67891434, 116.66876762, 104.00698793};  // red, green, blue

typedef double Pixel [[gnu::vector_size(32)]];  // red, green, blue, and what stands behind them
typedef float PixelOut [[gnu::vector_size(16)]];

// total[i] = or += weight * from[i].
template <bool kFirst>
[[gnu::always_inline]] inline void add_row(double* __restrict__ total, const uint8_t* __restrict__ from, double weight,
                                           int64_t count) {
  for (int64_t i = 0; i < count; ++i) total[i] = (kFirst ? 0 : total[i]) + weight * from[i];
}

// E: float, BF16 or FP16.
template <class E>
void input_rows(const NetworkInputParams& p, const Taps& taps) {
  const int64_t square = p.height > p.width ? p.height : p.width, row = 3 * p.width;
  const double* weights = static_cast<const double*>(taps.weight);
  const size_t total_bytes = static_cast<size_t>(3 * square + 1) * sizeof(double);
  const size_t result_bytes = static_cast<size_t>(3 * p.side) * sizeof(float);
  double* total = static_cast<double*>(scratch(Scratch::worker, total_bytes + result_bytes));
  float* result = reinterpret_cast<float*>(total + 3 * square + 1);  // a row of it, plane by plane
  std::memset(total, 0, total_bytes);
  const Pixel mean = {kMean[0], kMean[1], kMean[2]};
  for (int64_t y = 0; y < p.side; ++y) {
    bool first = true;
    for (int64_t t = y * taps.count; t < (y + 1) * taps.count; ++t) {
      if (taps.index[t] >= p.height || weights[t] == 0) continue;
      const uint8_t* from = p.image + taps.index[t] * row;
      first ? add_row<true>(total, from, weights[t], row) : add_row<false>(total, from, weights[t], row);
      first = false;
    }
    if (first) std::memset(total, 0, static_cast<size_t>(row) * sizeof(double));
    for (int64_t x = 0; x < p.side; ++x) {
      Pixel sum = {};
      for (int64_t t = x * taps.count; t < (x + 1) * taps.count; ++t) {
        Pixel from;
        std::memcpy(&from, total + 3 * taps.index[t], sizeof from);
        sum += weights[t] * from;
      }
      const PixelOut out = __builtin_convertvector(sum - mean, PixelOut);
      for (int c = 0; c < 3; ++c) result[(2 - c) * p.side + x] = out[c];
    }
    for (int c = 0; c < 3; ++c) {
      E* to = static_cast<E*>(p.y) + (c * p.side + y) * p.side;
      const float* from = result + c * p.side;
      for (int64_t x = 0; x < p.side; x += kWidth) {
        const int count = static_cast<int>(least(kWidth, p.side - x));
        store_some(to + x, load_some(from + x, count), count);
      }
    }
  }
}

void input_rows_of(const NetworkInputParams& p, const Taps& taps) {
  switch (p.dtype) {
    case Dtype::bfloat16: return input_rows<BF16>(p, taps);
    case Dtype::float16: return input_rows<FP16>(p, taps);
    default: return input_rows<float>(p, taps);
  }
}

}  // namespace
}  // namespace ddn::cpu
