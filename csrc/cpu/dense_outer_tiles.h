// Tasks of dense_outer: y = a^T @ b in float. What its variants share.
//
// A task is a block of y. A few hundred rows of b, its columns in panels of two registers, are brought together in the
// cache; then of a as many columns at a time as sums fill the registers pass over all panels.
#pragma once
#include "cpu/dense_outer.h"
#include "cpu/outer_products.h"
#include "cpu/scratch.h"

namespace ddn::cpu {
namespace {

constexpr int kTileRows = kOuterRowsAtOnce;
constexpr int kPanel = 2 * kWidth;
constexpr int64_t kDepth = 256;  // rows of a and b at a time: [256,512] of b are half a second-level cache

// y[r][c] (+)= sum over d of a[d][r] * b[d][c], of which rows x columns exist. a [depth][kTileRows], b [depth][kPanel].
inline void outer_tile(const float* a, const float* b, int64_t depth, float* y, int64_t stride, int rows, int columns,
                       bool add) {
  Vec total[kTileRows][2] = {};
  outer_products(a, kTileRows, b, kPanel, depth, total);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r)
    if (r < rows)
      for (int v = 0; v < 2; ++v) {
        const int some = columns - v * kWidth;
        float* at = y + r * stride + v * kWidth;
        if (some > 0) store_some(at, add ? load_some(at, some) + total[r][v] : total[r][v], some);
      }
}

// `width` columns from the first on, of `depth` rows, in panels [depth][Panel] with zeros where no column is. Row by
// row: panel by panel each few columns came from other pages of memory, which took an Intel server twice as long.
template <int Panel>
void pack_panels(const float* from, int64_t stride, int64_t depth, int64_t width, float* to) {
  for (int64_t d = 0; d < depth; ++d, from += stride)
    for (int64_t c = 0; c < width; c += Panel) {
      float* panel = to + (c * depth + d * Panel);
      const int64_t some = least(width - c, Panel);
      if (some < Panel) std::memset(panel, 0, Panel * sizeof(float));
      std::memcpy(panel, from + c, static_cast<size_t>(some) * sizeof(float));
    }
}

inline void run_dense_outer(const DenseOuterParams& p, int64_t begin, int64_t end) {
  float* panels = static_cast<float*>(
      scratch(Scratch::worker, (kDepth * (kOuterColumns + kPanel) + kDepth * kTileRows) * sizeof(float)));
  float* tile = panels + kDepth * (kOuterColumns + kPanel);
  const int64_t blocks = (p.rows + kOuterRows - 1) / kOuterRows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t column = task / blocks * kOuterColumns, top = task % blocks * kOuterRows;
    const int64_t width = least(p.columns - column, kOuterColumns), bottom = least(top + kOuterRows, p.rows);
    for (int64_t d = 0; d < p.depth; d += kDepth) {
      const int64_t depth = least(p.depth - d, kDepth);
      pack_panels<kPanel>(p.b + d * p.columns + column, p.columns, depth, width, panels);
      for (int64_t r = top; r < bottom; r += kTileRows) {
        const int rows = static_cast<int>(least(bottom - r, kTileRows));
        pack_panels<kTileRows>(p.a + d * p.rows + r, p.rows, depth, rows, tile);
        for (int64_t c = 0; c < width; c += kPanel)
          outer_tile(tile, panels + c * depth, depth, p.y + r * p.columns + column + c, p.columns, rows,
                     static_cast<int>(width - c), d > 0);
      }
    }
  }
}

}  // namespace
}  // namespace ddn::cpu
