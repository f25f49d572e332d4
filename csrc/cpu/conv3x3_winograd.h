// Rows of a 3x3 convolution in float by Winograd's F(4x4, 3x3): 36 multiplications make 16 outputs that cost 144
// directly.
//
//   y = A^T [ (G g G^T) . (B^T d B) ] A        d: 6x6 inputs around a 4x4 tile of outputs; . : sum over input channels
//
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.) Interpolated at 0, +-sqrt(1/2),
// +-sqrt(2) and infinity instead of 0, +-1, +-2: the rounding error is a fifth, about twice that of the direct sum. G g
// G^T comes packed (ddn_fast/packing.py). A group of tiles is transformed for all input channels, multiplied by each of
// the 36 transformed kernels as a matrix product, one block of outputs at a time, and transformed back.
#pragma once
#include "cpu/conv3x3_direct.h"

namespace ddn::cpu {
namespace {

constexpr int64_t kGroup = 4 * 12;  // tiles; more use the weights better, fewer stay in the cache
constexpr int kPoints = 36;

constexpr float kRoot = 1.41421356237309505f;

// B^T d
DDN_INLINE void transform_in(const Vec (&d)[6], Vec (&r)[6]) {
  const Vec a = d[4] - 2 * d[2], b = kRoot / 2 * (d[3] - 2 * d[1]);
  const Vec c = d[4] - 0.5f * d[2], e = kRoot * (d[3] - 0.5f * d[1]);
  r[0] = d[0] - 2.5f * d[2] + d[4];
  r[1] = a + b;
  r[2] = a - b;
  r[3] = c + e;
  r[4] = c - e;
  r[5] = d[1] - 2.5f * d[3] + d[5];
}

// A^T m
DDN_INLINE void transform_out(const Vec (&m)[6], Vec (&y)[4]) {
  const Vec a = m[1] + m[2], b = kRoot / 2 * (m[1] - m[2]), c = m[3] + m[4], d = kRoot * (m[3] - m[4]);
  y[0] = m[0] + a + c;
  y[1] = b + d;
  y[2] = 0.5f * a + 2 * c;
  y[3] = 0.5f * b + 2 * d + m[5];
}

// One block of 6x6 inputs to 36 points. from: `row` elements between rows; to: `point` elements between points.
DDN_INLINE void tile_in(const float* from, int64_t row, float* to, int64_t point) {
  for (int v = 0; v < kBlock; v += kWidth) {
    Vec half[6][6];
    for (int j = 0; j < 6; ++j) {
      Vec d[6], r[6];
      for (int i = 0; i < 6; ++i) d[i] = load(from + i * row + j * kBlock + v);
      transform_in(d, r);
      for (int i = 0; i < 6; ++i) half[i][j] = r[i];
    }
    for (int i = 0; i < 6; ++i) {
      Vec r[6];
      transform_in(half[i], r);
      for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * point + v, r[j]);
    }
  }
}

// The reverse for one block of outputs, of which rows x columns exist; bias and ReLU.
DDN_INLINE void tile_out(const float* from, int64_t point, const float* bias, float* to, int64_t row, int rows,
                         int columns) {
  for (int v = 0; v < kBlock; v += kWidth) {
    Vec half[4][6];
    for (int j = 0; j < 6; ++j) {
      Vec m[6], y[4];
      for (int i = 0; i < 6; ++i) m[i] = load(from + (i * 6 + j) * point + v);
      transform_out(m, y);
      for (int i = 0; i < 4; ++i) half[i][j] = y[i];
    }
    const Vec b = load(bias + v);
    for (int i = 0; i < rows; ++i) {
      Vec y[4];
      transform_out(half[i], y);
      for (int j = 0; j < columns; ++j) store(to + i * row + j * kBlock + v, relu(y[j] + b));
    }
  }
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

  bool whole() const {
    return in_rows == 6 && in_columns == 6;
  }
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

// scratch: winograd_scratch(layer) bytes.
inline void winograd_rows(const RowsJob<float>& job, float* scratch) {
  const Tiles tiles{job};
  const int64_t blocks = blocks_of(job.layer.in_channels), in_plane = kGroup * kBlock;
  const int64_t in_point = point_stride(blocks), out_point = point_stride(1), kernel = blocks * DirectWeights::kTap;
  float *transformed = scratch, *products = scratch + kPoints * in_point;
  const int64_t no_offset[1] = {0};
  const int64_t row = job.in.pitch * kBlock;
  for (int64_t first = 0; first < tiles.total(); first += kGroup) {
    const int now = at_most(tiles.total() - first, kGroup);
    Tile group[kGroup];
    for (int t = 0; t < now; ++t) {
      group[t] = tiles[first + t];
      for (int64_t b = 0; b < blocks; ++b) {
        const float* from = job.in.data + b * job.in.plane + group[t].in;
        float* to = transformed + b * in_plane + t * kBlock;
        if (group[t].whole())
          tile_in(from, row, to, in_point);
        else
          tile_in_edge(from, row, group[t].in_rows, group[t].in_columns, to, in_point);
      }
    }
    for (int64_t b = job.block_begin; b < job.block_end; ++b) {
      const float* weights = static_cast<const float*>(job.layer.weight) + b * kPoints * kernel;
      for (int64_t k = 0; k < kPoints; ++k)
        span<DirectWeights>(
            {transformed + k * in_point, in_plane, blocks, no_offset, 1, products + k * out_point, nullptr},
            weights + k * kernel, now);
      float bias[kBlock];
      load_bias(job.layer, b, bias);
      for (int t = 0; t < now; ++t)
        tile_out(products + t * kBlock, out_point, bias, job.out.data + b * job.out.plane + group[t].out, row,
                 group[t].out_rows, group[t].out_columns);
    }
  }
  for (int64_t m = 0; m < job.maps; ++m)
    for (int64_t b = job.block_begin; b < job.block_end; ++b) job.out_of(m).zero_borders(b, job.out_row, job.count);
}

}  // namespace
}  // namespace ddn::cpu
