// The gradient of a 3x3 transposed convolution's weights by Winograd's F(4x4, 3x3), transposed: what multiplies in
//
//   y = A^T [ (G g G^T) . (B^T d B) ] A      is linear in g; its gradient is
//   grad g = G^T [ sum over tiles of (B^T d B) x (A grad_y A^T) ] G
//
// 36 products of matrices [C, tiles] x [tiles, O], a quarter of the direct sum's multiplications. A group of tiles of
// both maps is transformed by all threads; then each takes points and blocks of channels of its own. Which sums are
// added to which does not depend on the number of threads.
#pragma once
#include "cpu/deconv3x3_weights.h"
#include "cpu/outer_products.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace ddn::cpu {
namespace {

// A y: 4 values to 6 points, the transpose of transform_out.
DDN_INLINE void transform_gradient(const Vec (&y)[4], Vec (&m)[6]) {
  const Vec small = y[0] + 0.5f * y[2], large = y[0] + 2 * y[2];
  const Vec small_odd = kRoot / 2 * (y[1] + 0.5f * y[3]), large_odd = kRoot * (y[1] + 2 * y[3]);
  m[0] = y[0];
  m[1] = small + small_odd;
  m[2] = small - small_odd;
  m[3] = large + large_odd;
  m[4] = large - large_odd;
  m[5] = y[3];
}

// One block of a 4x4 tile to 36 points: A y A^T.
inline void tile_gradient(const float* from, int64_t row, float* to, int64_t point) {
  for (int v = 0; v < kBlock; v += kWidth) {
    Vec half[4][6];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Vec y[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) y[i] = load(from + i * row + j * kBlock + v);
      transform_gradient(y, half[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      const Vec y[4] = {half[0][i], half[1][i], half[2][i], half[3][i]};
      Vec m[6];
      transform_gradient(y, m);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * point + v, m[j]);
    }
  }
}

// sum[n][0..kOutputs) (+)= sum over t of a[t][n] * b[t][0..kOutputs), n < Inputs; rows of 32 floats.
template <int Inputs>
DDN_INLINE void outer_tile(const float* a, const float* b, int64_t tiles, float* sum, bool add) {
  Vec total[Inputs][2] = {};
  outer_products(a, kBlock, b, kBlock, tiles, total);
#pragma GCC unroll 12
  for (int n = 0; n < Inputs; ++n)
    for (int v = 0; v < 2; ++v) {
      float* at = sum + n * kBlock + v * kWidth;
      store(at, add ? load(at) + total[n][v] : total[n][v]);
    }
}

// The same for whole blocks: sum [32][32].
inline void outer(const float* a, const float* b, int64_t tiles, float* sum, bool add) {
  constexpr int kInputs = kOuterRowsAtOnce;
  for (int o = 0; o < kBlock; o += kOutputs) {
    int n = 0;
    for (; n + kInputs <= kBlock; n += kInputs) outer_tile<kInputs>(a + n, b + o, tiles, sum + n * kBlock + o, add);
    if constexpr (kBlock % kInputs != 0) outer_tile<kBlock % kInputs>(a + n, b + o, tiles, sum + n * kBlock + o, add);
  }
}

template <class In, class Gradient>
class WeightGradient {
 public:
  WeightGradient(const In& in, const Gradient& gradient, const DeconvWeights& weights, int64_t maps,
                 const Parallel& parallel)
      : in_(in),
        gradient_(gradient),
        weights_(weights),
        parallel_(parallel),
        across_((in.width + 3) / 4),
        down_((in.height + 3) / 4),
        rows_(maps * down_),
        in_blocks_(weights.in_blocks()),
        out_blocks_(weights.out_blocks()) {
    const int64_t bytes_of_row = kPoints * across_ * (in_blocks_ + out_blocks_) * kBlock * int64_t{sizeof(float)};
    // sums are read and written once a group, tiles once: a group should be no smaller than they are
    const int64_t wanted = weights.packed_floats() * int64_t{sizeof(float)};
    const int64_t bytes = wanted > kGroupBytes ? wanted : kGroupBytes;
    group_ = least(bytes < bytes_of_row ? 1 : bytes / bytes_of_row, rows_);
    tiles_ = group_ * across_;
  }

  // sums: weights.packed_floats() floats of scratch.
  void run(float* sums, float* grad_weight) const {
    const int64_t in_floats = kPoints * point(in_blocks_);
    float* transformed =
        static_cast<float*>(scratch(Scratch::shared, (in_floats + kPoints * point(out_blocks_)) * sizeof(float)));
    for (int64_t first = 0; first < rows_; first += group_) {
      const int64_t count = least(group_, rows_ - first);
      transform(first, count, transformed, transformed + in_floats);
      multiply(count * across_, transformed, transformed + in_floats, sums, first > 0);
    }
    parallel_(weights_.in_channels, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) weights_.gradient(c, sums, grad_weight);
    });
  }

 private:
  static constexpr int64_t kGroupBytes = int64_t{8} << 20;

  const In& in_;
  const Gradient& gradient_;
  const DeconvWeights& weights_;
  const Parallel& parallel_;
  int64_t across_, down_, rows_;  // tiles across and down a map, rows of tiles of all maps
  int64_t in_blocks_, out_blocks_;
  int64_t group_, tiles_;  // rows of tiles, and tiles, at once

  // Floats from one point to the next: an odd number of blocks, so that 36 stores do not meet in one set of the cache.
  int64_t point(int64_t blocks) const {
    return (blocks * tiles_ / 2 * 2 + 1) * kBlock;
  }
  int64_t pitch() const {
    return 4 * across_ + 2;
  }

  void transform(int64_t first, int64_t count, float* to_in, float* to_out) const {
    const int64_t blocks = in_blocks_ + out_blocks_;
    parallel_(count * blocks, [&](int64_t begin, int64_t end) {
      float* lines = static_cast<float*>(scratch(Scratch::worker, 6 * pitch() * kBlock * sizeof(float)));
      for (int64_t k = begin; k < end; ++k) {
        const int64_t row = k / blocks, n = (first + row) / down_, y = (first + row) % down_ * 4, block = k % blocks;
        if (block < in_blocks_) {
          fill(in_, n, y - 1, 6, block, 1, lines);
          float* to = to_in + (block * tiles_ + row * across_) * kBlock;
          for (int64_t t = 0; t < across_; ++t)
            tile_in(lines + 4 * t * kBlock, pitch() * kBlock, FloatPoints(to + t * kBlock, point(in_blocks_)));
        } else {
          fill(gradient_, n, y, 4, block - in_blocks_, 0, lines);
          float* to = to_out + ((block - in_blocks_) * tiles_ + row * across_) * kBlock;
          for (int64_t t = 0; t < across_; ++t)
            tile_gradient(lines + 4 * t * kBlock, pitch() * kBlock, to + t * kBlock, point(out_blocks_));
        }
      }
    });
  }

  // `count` rows of one block from row y on, `left` zeros before each and zeros up to the pitch after; rows that do not
  // exist are zeros.
  template <class Lines>
  void fill(const Lines& from, int64_t n, int64_t y, int count, int64_t block, int64_t left, float* lines) const {
    const int64_t after = left + in_.width;
    for (int r = 0; r < count; ++r) {
      float* line = lines + r * pitch() * kBlock;
      if (y + r < 0 || y + r >= in_.height) {
        std::memset(line, 0, pitch() * kBlock * sizeof(float));
        continue;
      }
      std::memset(line, 0, left * kBlock * sizeof(float));
      from.line(n, y + r, block, line + left * kBlock);
      std::memset(line + after * kBlock, 0, (pitch() - after) * kBlock * sizeof(float));
    }
  }

  void multiply(int64_t tiles, const float* in, const float* out, float* sums, bool add) const {
    parallel_(kPoints * out_blocks_ * in_blocks_, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t at = k / (out_blocks_ * in_blocks_), o = k / in_blocks_ % out_blocks_, i = k % in_blocks_;
        outer(in + at * point(in_blocks_) + i * tiles_ * kBlock, out + at * point(out_blocks_) + o * tiles_ * kBlock,
              tiles, sums + ((o * kPoints + at) * in_blocks_ + i) * kBlock * kBlock, add);
      }
    });
  }
};

}  // namespace
}  // namespace ddn::cpu
