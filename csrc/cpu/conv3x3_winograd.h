// Rows of a 3x3 convolution in float by Winograd's F(4x4, 3x3): 36 multiplications make 16 outputs that cost 144
// directly.
//
//   y = A^T [ (G g G^T) . (B^T d B) ] A        d: 6x6 inputs around a 4x4 tile of outputs; . : sum over input channels
//
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.) Interpolated at 0, +-sqrt(1/2),
// +-sqrt(2) and infinity instead of 0, +-1, +-2: the rounding error is a fifth, about twice that of the direct sum. G g
// G^T comes packed (ddn_fast/packing.py). A group of tiles is transformed for all input channels, multiplied by each of
// the 36 transformed kernels as a matrix product, and transformed back.
#pragma once
#include "cpu/conv3x3_direct.h"

namespace ddn::cpu {
namespace {

constexpr int kPoints = 36;

// Tiles transformed together. Weights pass by once for each group: larger ones read them less often, smaller ones stay
// in the cache; from 24 to 96 nothing was measurably better.
constexpr int kGroup = 4 * 12;

constexpr float kRoot = 1.41421356237309505f;

// One or two rows of B^T d: the points come in pairs that share their terms.
enum class Rows2 { zero, small, large, infinity };  // row 0; rows 1, 2 (+-sqrt(1/2)); rows 3, 4 (+-sqrt(2)); row 5

// The inputs a row needs, d of one column: d[i] is called for those only.
template <Rows2 Part, class D>
DDN_INLINE void transform_in(D d, Vec& first, Vec& second) {
  if constexpr (Part == Rows2::zero) {
    first = d(0) - 2.5f * d(2) + d(4);
  } else if constexpr (Part == Rows2::infinity) {
    first = d(1) - 2.5f * d(3) + d(5);
  } else {
    constexpr float square = Part == Rows2::small ? 2.0f : 0.5f, root = Part == Rows2::small ? kRoot / 2 : kRoot;
    const Vec even = d(4) - square * d(2), odd = root * (d(3) - square * d(1));
    first = even + odd;
    second = even - odd;
  }
}

// Row `row` of B^T d B from the row of B^T d.
DDN_INLINE void store_in(const Vec (&half)[6], float* to, int64_t point, int row) {
  const auto d = [&](int j) __attribute__((always_inline)) { return half[j]; };
  Vec r[6];
  transform_in<Rows2::zero>(d, r[0], r[0]);
  transform_in<Rows2::small>(d, r[1], r[2]);
  transform_in<Rows2::large>(d, r[3], r[4]);
  transform_in<Rows2::infinity>(d, r[5], r[5]);
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) store(to + (row * 6 + j) * point, r[j]);
}

// Rows of B^T d B that share their terms. Rather than keep all 36 values of B^T d, for which there are not the
// registers, the inputs are read again.
template <Rows2 Part>
DDN_INLINE void part_in(const float* from, int64_t row, float* to, int64_t point) {
  Vec first[6], second[6];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j)
    transform_in<Part>([&](int i) __attribute__((always_inline)) { return load(from + i * row + j * kBlock); },
                       first[j], second[j]);
  constexpr int at = Part == Rows2::zero ? 0 : Part == Rows2::small ? 1 : Part == Rows2::large ? 3 : 5;
  store_in(first, to, point, at);
  if constexpr (Part == Rows2::small || Part == Rows2::large) store_in(second, to, point, at + 1);
}

// One block of 6x6 inputs to 36 points. from: `row` elements between rows; to: `point` elements between points.
inline void tile_in(const float* from, int64_t row, float* to, int64_t point) {
  for (int v = 0; v < kBlock; v += kWidth) {
    part_in<Rows2::zero>(from + v, row, to + v, point);
    part_in<Rows2::small>(from + v, row, to + v, point);
    part_in<Rows2::large>(from + v, row, to + v, point);
    part_in<Rows2::infinity>(from + v, row, to + v, point);
  }
}

// A^T m
DDN_INLINE void transform_out(const Vec (&m)[6], Vec (&y)[4]) {
  const Vec a = m[1] + m[2], b = kRoot / 2 * (m[1] - m[2]), c = m[3] + m[4], d = kRoot * (m[3] - m[4]);
  y[0] = m[0] + a + c;
  y[1] = b + d;
  y[2] = 0.5f * a + 2 * c;
  y[3] = 0.5f * b + 2 * d + m[5];
}

// The reverse for one block of outputs: 36 points to 4x4, bias and ReLU where there is a bias.
inline void tile_out(const float* from, int64_t point, const float* bias, float* to, int64_t row) {
  for (int v = 0; v < kBlock; v += kWidth) {
    Vec half[4][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      Vec m[6], y[4];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) m[i] = load(from + (i * 6 + j) * point + v);
      transform_out(m, y);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) half[i][j] = y[i];
    }
    const Vec b = bias ? load(bias + v) : Vec{};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Vec y[4];
      transform_out(half[i], y);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to + i * row + j * kBlock + v, bias ? relu(y[j] + b) : y[j]);
    }
  }
}

// The same for a tile of which rows x columns outputs exist.
inline void tile_out_edge(const float* from, int64_t point, const float* bias, float* to, int64_t row, int rows,
                          int columns) {
  float patch[16 * kBlock];
  tile_out(from, point, bias, patch, 4 * kBlock);
  for (int i = 0; i < rows; ++i) std::memcpy(to + i * row, patch + i * 4 * kBlock, columns * kBlock * sizeof(float));
}

// The 6x6 inputs of a tile at the edge, zeros where there are none: rows x columns exist.
inline void tile_in_edge(const float* from, int64_t row, int rows, int columns, float* to, int64_t point) {
  float patch[kPoints * kBlock] = {};
  for (int i = 0; i < rows; ++i) std::memcpy(patch + i * 6 * kBlock, from + i * row, columns * kBlock * sizeof(float));
  tile_in(patch, 6 * kBlock, to, point);
}

// Elements from one point to the next: an odd number of blocks, so that 36 stores do not meet in one set of the cache.
DDN_INLINE int64_t point_stride(int64_t blocks) {
  return (blocks * kGroup + 1) * kBlock;
}

inline size_t winograd_scratch(const Conv3x3Layer& layer) {
  return kPoints * (point_stride(blocks_of(layer.in_channels)) + point_stride(1)) * sizeof(float);
}

DDN_INLINE int at_most(int64_t n, int most) {
  return n < most ? static_cast<int>(n) : most;
}

// Where a tile lies, in elements from the first block's plane, and how much of it exists.
struct Tile {
  int64_t in, out;
  int in_rows, in_columns, out_rows, out_columns;
};

// The tiles of a job, numbered across, then down, then from map to map.
struct Tiles {
  const RowsJob<float>& job;
  int64_t width = job.in.pitch - 1, across = (width + 3) / 4, of_map = (job.count + 3) / 4 * across;

  int64_t total() const {
    return job.maps * of_map;
  }

  Tile operator[](int64_t tile) const {
    const int64_t map = tile / of_map, y = tile % of_map / across * 4, x = tile % across * 4;
    return {map * job.in_map + ((job.in_row + y) * job.in.pitch + x) * kBlock,
            map * job.out_map + ((job.out_row + y) * job.out.pitch + x + 1) * kBlock,
            at_most(job.count + 2 - y, 6),
            at_most(width + 2 - x, 6),
            at_most(job.count - y, 4),
            at_most(width - x, 4)};
  }
};

// One group of tiles on its way. scratch: winograd_scratch(layer) bytes.
class Group {
 public:
  Group(const RowsJob<float>& job, float* scratch)
      : job_(job),
        in_blocks_(blocks_of(job.layer.in_channels)),
        in_point_(point_stride(in_blocks_)),
        transformed_(scratch),
        products_(scratch + kPoints * in_point_) {
  }

  void run(const Tiles& tiles, int64_t first) {
    count_ = at_most(tiles.total() - first, kGroup);
    for (int t = 0; t < count_; ++t) tile_[t] = tiles[first + t];
    transform();
    for (int64_t b = job_.block_begin; b < job_.block_end; ++b) {
      multiply(b);
      transform_back(b);
    }
  }

 private:
  static constexpr int64_t kOutPoint = (kGroup + 1) * kBlock;

  const RowsJob<float>& job_;
  int64_t in_blocks_, in_point_;
  float* transformed_;  // [36][in block][tile][32]
  float* products_;     // [36][tile][32]
  int count_ = 0;
  Tile tile_[kGroup];

  void transform() {
    const int64_t row = job_.in.pitch * kBlock;
    for (int t = 0; t < count_; ++t)
      for (int64_t b = 0; b < in_blocks_; ++b) {
        const float* from = job_.in.data + b * job_.in.plane + tile_[t].in;
        float* to = transformed_ + (b * kGroup + t) * kBlock;
        if (tile_[t].in_rows == 6 && tile_[t].in_columns == 6)
          tile_in(from, row, to, in_point_);
        else
          tile_in_edge(from, row, tile_[t].in_rows, tile_[t].in_columns, to, in_point_);
      }
  }

  void multiply(int64_t block) {
    const int64_t kernel = in_blocks_ * DirectWeights::kTap, no_offset[1] = {0};
    const float* weights = static_cast<const float*>(job_.layer.weight) + block * kPoints * kernel;
    for (int64_t k = 0; k < kPoints; ++k)
      span<DirectWeights>(
          {transformed_ + k * in_point_, kGroup * kBlock, in_blocks_, no_offset, 1, products_ + k * kOutPoint, nullptr},
          weights + k * kernel, count_);
  }

  void transform_back(int64_t block) const {
    float values[kBlock];
    const float* bias = load_bias(job_.layer, block, values);
    const int64_t row = job_.out.pitch * kBlock;
    for (int t = 0; t < count_; ++t) {
      const float* from = products_ + t * kBlock;
      float* to = job_.out.data + block * job_.out.plane + tile_[t].out;
      if (tile_[t].out_rows == 4 && tile_[t].out_columns == 4)
        tile_out(from, kOutPoint, bias, to, row);
      else
        tile_out_edge(from, kOutPoint, bias, to, row, tile_[t].out_rows, tile_[t].out_columns);
    }
  }
};

inline void winograd_rows(const RowsJob<float>& job, float* scratch) {
  const Tiles tiles{job};
  Group group(job, scratch);
  for (int64_t first = 0; first < tiles.total(); first += kGroup) group.run(tiles, first);
  for (int64_t m = 0; m < job.maps; ++m)
    for (int64_t b = job.block_begin; b < job.block_end; ++b) job.out_of(m).zero_borders(b, job.out_row, job.count);
}

}  // namespace
}  // namespace ddn::cpu
