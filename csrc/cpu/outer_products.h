// The inner loop of every product a^T @ b here: sums of outer products, kept in registers.
#pragma once
#include "cpu/vec.h"

namespace ddn::cpu {
namespace {

// Rows of a that, with two registers of columns of b, fill the registers with sums: 24 of 32, or 8 of 16.
constexpr int kOuterRowsAtOnce = kWidth == 16 ? 12 : 4;

// total[r] = sum over d of a[d * a_step + r] * (two registers of columns at b + d * b_step). One broadcast and two
// multiply-adds for each value of a. Steps are constants where it is called.
template <int Rows>
DDN_INLINE void outer_products(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t depth,
                               Vec (&total)[Rows][2]) {
  for (int64_t d = 0; d < depth; ++d, a += a_step, b += b_step) {
    const Vec b0 = load(b), b1 = load(b + kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const Vec value = splat(a[r]);
      total[r][0] += value * b0;
      total[r][1] += value * b1;
    }
  }
}

}  // namespace
}  // namespace ddn::cpu
