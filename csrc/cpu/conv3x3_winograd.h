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
// in the cache. All 100 tiles of a 40x40 map at once made 512 channels of integers a tenth faster than 48 at a time;
// other maps hardly tell.
constexpr int kGroup = 9 * 12;

constexpr float kRoot = 1.41421356237309505f;

// One or two rows of B^T d: the points come in pairs that share their terms.
// Named by their points: row 0; rows 1, 2 (+-sqrt(1/2)); rows 3, 4 (+-sqrt(2)); row 5.
enum class Rows2 { zero, small, large, infinity };

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

// Row `row` of B^T d B from the row of B^T d; put(point, values) takes one of the 36.
template <class Put>
DDN_INLINE void row_in(const Vec (&half)[6], int row, const Put& put) {
  const auto d = [&](int j) __attribute__((always_inline)) { return half[j]; };
  Vec r[6];
  transform_in<Rows2::zero>(d, r[0], r[0]);
  transform_in<Rows2::small>(d, r[1], r[2]);
  transform_in<Rows2::large>(d, r[3], r[4]);
  transform_in<Rows2::infinity>(d, r[5], r[5]);
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) put(row * 6 + j, r[j]);
}

// Rows of B^T d B that share their terms. Rather than keep all 36 values of B^T d, for which there are not the
// registers, the inputs are read again.
template <Rows2 Part, class Put>
DDN_INLINE void part_in(const float* from, int64_t row, const Put& put) {
  Vec first[6], second[6];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j)
    transform_in<Part>([&](int i) __attribute__((always_inline)) { return load(from + i * row + j * kBlock); },
                       first[j], second[j]);
  constexpr int at = Part == Rows2::zero ? 0 : Part == Rows2::small ? 1 : Part == Rows2::large ? 3 : 5;
  row_in(first, at, put);
  if constexpr (Part == Rows2::small || Part == Rows2::large) row_in(second, at + 1, put);
}

// Where transformed values go: `point` elements between points.
struct FloatPoints {
  float* to;
  int64_t point;

  FloatPoints(float* to, int64_t point) : to(to), point(point) {
  }
  DDN_INLINE void put(int k, int v, Vec value) const {
    store(to + k * point + v, value);
  }
};

// One block of 6x6 inputs, `row` elements between rows, to 36 points.
template <class Points>
inline void tile_in(const float* from, int64_t row, const Points& to) {
  for (int v = 0; v < kBlock; v += kWidth) {
    const auto put = [&](int k, Vec value) __attribute__((always_inline)) { to.put(k, v, value); };
    part_in<Rows2::zero>(from + v, row, put);
    part_in<Rows2::small>(from + v, row, put);
    part_in<Rows2::large>(from + v, row, put);
    part_in<Rows2::infinity>(from + v, row, put);
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
template <class Products>
inline void tile_out(const Products& from, const float* bias, float* to, int64_t row) {
  for (int v = 0; v < kBlock; v += kWidth) {
    Vec half[4][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      Vec m[6], y[4];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) m[i] = from.get(i * 6 + j, v);
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
      for (int j = 0; j < 4; ++j) {
        const Vec value = from.scaled(y[j]);
        store(to + i * row + j * kBlock + v, bias ? relu(value + b) : value);
      }
    }
  }
}

// The same for a tile of which rows x columns outputs exist.
template <class Products>
inline void tile_out_edge(const Products& from, const float* bias, float* to, int64_t row, int rows, int columns) {
  float patch[16 * kBlock];
  tile_out(from, bias, patch, 4 * kBlock);
  for (int i = 0; i < rows; ++i) std::memcpy(to + i * row, patch + i * 4 * kBlock, columns * kBlock * sizeof(float));
}

// The 6x6 inputs of a tile at the edge, zeros where there are none: rows x columns exist.
template <class Points>
inline void tile_in_edge(const float* from, int64_t row, int rows, int columns, const Points& to) {
  float patch[kPoints * kBlock] = {};
  for (int i = 0; i < rows; ++i) std::memcpy(patch + i * 6 * kBlock, from + i * row, columns * kBlock * sizeof(float));
  tile_in(patch, 6 * kBlock, to);
}

// Elements from one point to the next: an odd number of blocks, so that 36 stores do not meet in one set of the cache.
DDN_INLINE int64_t point_stride(int64_t blocks) {
  return (blocks * kGroup + 1) * kBlock;
}

constexpr int64_t kProductPoint = (kGroup + 1) * kBlock;

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

// What is multiplied: floats as they are.
struct FloatNumbers {
  using Element = float;  // of transformed inputs and weights
  struct TileScale {};

  static constexpr int64_t kernel_elements(int64_t in_blocks) {
    return in_blocks * DirectWeights::kTap;
  }

  static TileScale scale(const Rows<float>&, int64_t, const Tile&) {
    return {};
  }

  struct Points : FloatPoints {
    Points(float* to, int64_t point, TileScale) : FloatPoints(to, point) {
    }
  };

  static void multiply(const float* points, int64_t in_blocks, const float* weights, float* products, int64_t tiles) {
    const int64_t no_offset[1] = {0};
    span<DirectWeights>({points, kGroup * kBlock, in_blocks, no_offset, 1, products, nullptr}, weights, tiles);
  }

  struct Products {
    const float* from;

    Products(const float* from, const float*, int64_t, TileScale) : from(from) {
    }
    DDN_INLINE Vec get(int k, int v) const {
      return load(from + k * kProductPoint + v);
    }
    DDN_INLINE Vec scaled(Vec value) const {
      return value;
    }
  };
};

template <class Numbers>
size_t winograd_scratch(const Conv3x3Layer& layer) {
  const size_t points = point_stride(blocks_of(layer.in_channels)) * sizeof(typename Numbers::Element);
  return kPoints * (points + kProductPoint * sizeof(float));
}

// One group of tiles on its way. scratch: winograd_scratch<Numbers>(layer) bytes.
template <class Numbers>
class Group {
  using Element = typename Numbers::Element;

 public:
  Group(const RowsJob<float>& job, void* scratch)
      : job_(job),
        in_blocks_(blocks_of(job.layer.in_channels)),
        in_point_(point_stride(in_blocks_)),
        products_(static_cast<float*>(scratch)),
        transformed_(reinterpret_cast<Element*>(products_ + kPoints * kProductPoint)) {
  }

  void run(const Tiles& tiles, int64_t first, int64_t count) {
    count_ = static_cast<int>(count);
    for (int t = 0; t < count_; ++t) tile_[t] = tiles[first + t];
    transform();
    for (int64_t b = job_.block_begin; b < job_.block_end; ++b) {
      const Element* weights = static_cast<const Element*>(job_.layer.weight) + b * kPoints * kernel_elements();
      for (int64_t k = 0; k < kPoints; ++k)
        Numbers::multiply(transformed_ + k * in_point_, in_blocks_, weights + k * kernel_elements(),
                          products_ + k * kProductPoint, count_);
      transform_back(b, weights);
    }
  }

 private:
  const RowsJob<float>& job_;
  int64_t in_blocks_, in_point_;
  float* products_;       // [36][tile][32]
  Element* transformed_;  // [36][in block][tile][32]
  int count_ = 0;
  Tile tile_[kGroup];
  typename Numbers::TileScale scale_[kGroup];

  int64_t kernel_elements() const {
    return Numbers::kernel_elements(in_blocks_);
  }

  void transform() {
    const int64_t row = job_.in.pitch * kBlock;
    for (int t = 0; t < count_; ++t) {
      const Tile& tile = tile_[t];
      scale_[t] = Numbers::scale(job_.in, in_blocks_, tile);
      typename Numbers::Points to(transformed_ + t * kBlock, in_point_, scale_[t]);
      for (int64_t b = 0; b < in_blocks_; ++b, to.to += kGroup * kBlock) {
        const float* from = job_.in.data + b * job_.in.plane + tile.in;
        if (tile.in_rows == 6 && tile.in_columns == 6)
          tile_in(from, row, to);
        else
          tile_in_edge(from, row, tile.in_rows, tile.in_columns, to);
      }
    }
  }

  void transform_back(int64_t block, const Element* weights) const {
    float values[kBlock];
    const float* bias = load_bias(job_.layer, block, values);
    const int64_t row = job_.out.pitch * kBlock;
    for (int t = 0; t < count_; ++t) {
      const typename Numbers::Products from(products_ + t * kBlock, weights, kernel_elements(), scale_[t]);
      float* to = job_.out.data + block * job_.out.plane + tile_[t].out;
      if (tile_[t].out_rows == 4 && tile_[t].out_columns == 4)
        tile_out(from, bias, to, row);
      else
        tile_out_edge(from, bias, to, row, tile_[t].out_rows, tile_[t].out_columns);
    }
  }
};

template <class Numbers>
void winograd_rows(const RowsJob<float>& job, void* scratch) {
  const Tiles tiles{job};
  Group<Numbers> group(job, scratch);
  int64_t first = 0;
  for (int64_t groups = (tiles.total() + kGroup - 1) / kGroup; groups > 0; --groups) {  // of nearly the same size
    const int64_t count = (tiles.total() - first + groups - 1) / groups;
    group.run(tiles, first, count);
    first += count;
  }
  for (int64_t m = 0; m < job.maps; ++m)
    for (int64_t b = job.block_begin; b < job.block_end; ++b) job.out_of(m).zero_borders(b, job.out_row, job.count);
}

}  // namespace
}  // namespace ddn::cpu
