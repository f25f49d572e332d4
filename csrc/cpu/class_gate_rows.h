// Sums of the rows of a matrix that are on (class_gate.h). A thread has columns of its own, so that every weight is
// read once and nothing is added across threads; of those, as many at a time as the sums of which stay in the
// first-level cache. Rows are added a few at a time, in ascending order, while those after them are fetched.
#pragma once
#include "cpu/class_gate.h"
#include "cpu/vec.h"

namespace ddn::cpu {
namespace {

constexpr int64_t kSums = 4096;  // at a time, of all pairs: 16 KiB
constexpr int64_t kStep = 32;    // columns

template <int Rows, int Pairs, class W>
DDN_INLINE void add_rows(const GateSums& s, int64_t row, int64_t ahead, int64_t column, int64_t columns, float* total,
                         int64_t stride) {
  const W* from[Rows];
  const W* next[Rows];
  Vec scale[Rows][Pairs];
  for (int r = 0; r < Rows; ++r) {
    from[r] = static_cast<const W*>(s.weight) + s.on[row + r] * s.columns + column;
    next[r] = static_cast<const W*>(s.weight) + s.on[ahead + r] * s.columns + column;
    for (int q = 0; q < Pairs; ++q) scale[r][q] = splat(s.scale[(row + r) * kGateTogether + q]);
  }
  constexpr int64_t kLine = 64 / sizeof(W);
  int64_t c = 0;
  for (; c + kStep <= columns; c += kStep) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
      for (int64_t line = 0; line < kStep; line += kLine) __builtin_prefetch(next[r] + c + line, 0, 2);
#pragma GCC unroll 8
    for (int v = 0; v < kStep; v += kWidth) {
      Vec sum[Pairs];
#pragma GCC unroll 4
      for (int q = 0; q < Pairs; ++q) sum[q] = load(total + q * stride + c + v);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vec w = load(from[r] + c + v);
#pragma GCC unroll 4
        for (int q = 0; q < Pairs; ++q) sum[q] += scale[r][q] * w;
      }
#pragma GCC unroll 4
      for (int q = 0; q < Pairs; ++q) store(total + q * stride + c + v, sum[q]);
    }
  }
  for (; c < columns; c += kWidth)
    for (int r = 0; r < Rows; ++r) {
      const Vec w = load_some(from[r] + c, static_cast<int>(columns - c));
      for (int q = 0; q < Pairs; ++q) {
        float* at = total + q * stride + c;  // padded to whole vectors
        store(at, load(at) + scale[r][q] * w);
      }
    }
}

template <int Pairs, class W>
void sum_columns(const GateSums& s, int64_t begin, int64_t end) {
  constexpr int kTogether = Pairs <= 2 ? 8 : 4;
  constexpr int64_t kMost = kSums / Pairs / kStep * kStep;
  alignas(64) float total[Pairs * kMost];
  const int64_t parts = (end - begin + kMost - 1) / kMost;
  const int64_t part = parts > 0 ? ((end - begin + parts - 1) / parts + kStep - 1) / kStep * kStep : 0;
  for (int64_t column = begin; column < end; column += part) {
    const int64_t columns = end - column < part ? end - column : part;
    std::memset(total, 0, sizeof total);
    int64_t row = 0;
    for (; row + kTogether <= s.count; row += kTogether) {
      const int64_t ahead = row + 2 * kTogether <= s.count ? row + kTogether : row;
      add_rows<kTogether, Pairs, W>(s, row, ahead, column, columns, total, kMost);
    }
    for (; row < s.count; ++row) add_rows<1, Pairs, W>(s, row, row, column, columns, total, kMost);
    for (int q = 0; q < Pairs; ++q)
      std::memcpy(s.y[q] + column, total + q * kMost, static_cast<size_t>(columns) * sizeof(float));
  }
}

template <class W>
void sum_rows(const GateSums& s, int64_t begin, int64_t end) {
  switch (s.pairs) {
    case 1: return sum_columns<1, W>(s, begin, end);
    case 2: return sum_columns<2, W>(s, begin, end);
    case 3: return sum_columns<3, W>(s, begin, end);
    default: return sum_columns<4, W>(s, begin, end);
  }
}

void sum_rows(const GateSums& s, int64_t begin, int64_t end) {
  s.dtype == Dtype::float32 ? sum_rows<float>(s, begin, end) : sum_rows<BF16>(s, begin, end);
}

}  // namespace
}  // namespace ddn::cpu
