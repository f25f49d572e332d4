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
#include "cpu/conv3x3_tiles.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

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

// The same where not all outputs are wanted, or one is the value of many: to each of the targets.
template <class Products>
inline void part_out(const Products& from, const float* bias, float* to, int64_t row, const Parts& parts,
                     const Part& part) {
  float patch[16 * kBlock];
  tile_out(from, bias, patch, 4 * kBlock);
  for (int t = part.first;; t = parts.target(t).next) {
    const Target& target = parts.target(t);
    for (int k = 0; k < 16; ++k)
      if (target.outputs >> k & 1)
        std::memcpy(to + target.out + k / 4 * row + k % 4 * kBlock, patch + (part.alone ? 0 : k * kBlock),
                    kBlock * sizeof(float));
    if (t == part.last) return;
  }
}

// The 6x6 inputs of a tile of which rows x columns exist, zeros where there are none.
template <class Points>
inline void tile_in_edge(const float* from, int64_t row, int rows, int columns, const Points& to) {
  float patch[kPoints * kBlock] = {};
  for (int i = 0; i < rows; ++i) std::memcpy(patch + i * 6 * kBlock, from + i * row, columns * kBlock * sizeof(float));
  tile_in(patch, 6 * kBlock, to);
}

constexpr int64_t kProductPoint = (kGroup + 1) * kBlock;

// What is multiplied: floats as they are.
struct FloatNumbers {
  using Element = float;  // of transformed inputs and weights
  struct TileScale {};

  static constexpr int64_t kWeights = DirectWeights::kTap;  // of a point and a block of inputs
  static constexpr int64_t kTogether = 1;                   // blocks of inputs multiplied at once

  static constexpr int64_t kernel_elements(int64_t in_blocks) {
    return in_blocks * kWeights;
  }

  static TileScale scale(const Rows<float>&, int64_t, const Part&) {
    return {};
  }

  struct Points : FloatPoints {
    Points(float* to, int64_t point, TileScale) : FloatPoints(to, point) {
    }
  };

  // products [tile,32] (+)= points times weights of `blocks` blocks of inputs, `stride` elements between them.
  template <int Count>
  static void multiply(const float* points, int64_t stride, int64_t blocks, const float* weights, float* products,
                       bool add) {
    const int64_t no_offset[1] = {0};
    span_tile<DirectWeights, Count>({points, stride, blocks, no_offset, 1, products, nullptr, add}, weights);
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

// Transformed inputs of `count` tiles: of a thread's own, or of a whole layer, for all threads.
template <class Numbers>
class Transformed {
  using Element = typename Numbers::Element;
  using TileScale = typename Numbers::TileScale;
  static constexpr int64_t kLine = 64 / sizeof(Element);  // of the cache

 public:
  static size_t bytes(int64_t in_blocks, int64_t count) {
    return kPoints * point_stride(in_blocks, count) * sizeof(Element) + count * sizeof(TileScale);
  }

  Transformed(void* memory, int64_t in_blocks, int64_t count)
      : in_blocks_(in_blocks),
        count_(count),
        point_(point_stride(in_blocks, count)),
        points_(static_cast<Element*>(memory)),
        scales_(reinterpret_cast<TileScale*>(points_ + kPoints * point_)) {
  }

  // Makes a part of the job the t-th.
  void put(int64_t t, const RowsJob<float>& job, const Part& part) {
    const int64_t row = job.in.pitch * kBlock;
    scales_[t] = Numbers::scale(job.in, in_blocks_, part);
    typename Numbers::Points to(points_ + t * kBlock, point_, scales_[t]);
    for (int64_t b = 0; b < in_blocks_; ++b, to.to += count_ * kBlock) {
      const float* from = job.in.data + b * job.in.plane + part.in;
      if (part.in_rows == 6 && part.in_columns == 6)
        tile_in(from, row, to);
      else
        tile_in_edge(from, row, part.in_rows, part.in_columns, to);
    }
  }

  // products [tile,32] of `tiles` tiles from the t-th on, at point k and for one block of outputs. Weights in the outer
  // loop: 4 KiB of them stay in the first-level cache while all tiles pass by. The other way round they come from the
  // second level again for every kPixels tiles: 3 to 20 % slower with integers, up to 2.2 times with floats. The next 4
  // KiB are asked for meanwhile: where they come from a third level as far away as an Intel server's, what streams
  // ahead by itself ends with each page of 4 KiB, and the products took 1.1 to 1.5 times as long.
  void multiply(int64_t k, int64_t t, int64_t tiles, const Element* weights, float* products) const {
    constexpr int64_t step = Numbers::kTogether * Numbers::kWeights;
    const int64_t ahead = (step * kPixels / tiles + kLine - 1) / kLine * kLine;  // for each kPixels tiles
    for (int64_t b = 0; b < in_blocks_; b += Numbers::kTogether) {
      const int64_t blocks = least(Numbers::kTogether, in_blocks_ - b);
      const Element* points = points_ + k * point_ + (b * count_ + t) * kBlock;
      const Element* rows = weights + b * Numbers::kWeights;
      in_even_parts(tiles, kPixels, [&](int64_t first, int64_t count) {
        const Element* next = rows + step + first * step / tiles;
        for (int64_t e = 0; e < ahead; e += kLine) __builtin_prefetch(next + e, 0, 2);
        with_count<kPixels>(count, [&]<int Count>() {
          Numbers::template multiply<Count>(points + first * kBlock, count_ * kBlock, blocks, rows,
                                            products + first * kBlock, b > 0);
        });
      });
    }
  }

  TileScale scale(int64_t t) const {
    return scales_[t];
  }

 private:
  int64_t in_blocks_, count_, point_;
  Element* points_;  // [36][in block][tile][32]
  TileScale* scales_;

  // Elements from one point to the next: of an odd number of blocks, so that 36 stores do not meet in one set of the
  // cache.
  static int64_t point_stride(int64_t in_blocks, int64_t count) {
    return (in_blocks * count / 2 * 2 + 1) * kBlock;
  }
};

constexpr size_t kProductsBytes = kPoints * kProductPoint * sizeof(float);  // [36][tile][32]

// One block of outputs of up to kGroup parts from `first` on, the t-th and following of `in`.
template <class Numbers>
void parts_of_block(const RowsJob<float>& job, const Parts& parts, int64_t first, int64_t count, int64_t block,
                    const Transformed<Numbers>& in, int64_t t, float* products) {
  const int64_t kernel = Numbers::kernel_elements(blocks_of(job.layer.in_channels));
  const auto* weights = static_cast<const typename Numbers::Element*>(job.layer.weight) + block * kPoints * kernel;
  for (int64_t k = 0; k < kPoints; ++k) in.multiply(k, t, count, weights + k * kernel, products + k * kProductPoint);
  float values[kBlock];
  const float* bias = load_bias(job.layer, block, values);
  const int64_t row = job.out.pitch * kBlock;
  float* to = job.out.data + block * job.out.plane;
  for (int64_t n = 0; n < count; ++n) {
    const typename Numbers::Products from(products + n * kBlock, weights, kernel, in.scale(t + n));
    const Part& part = parts[first + n];
    if (!part.alone && parts.target(part.first).outputs == kAllOutputs)
      tile_out(from, bias, to + parts.target(part.first).out, row);
    else
      part_out(from, bias, to, row, parts, part);
  }
}

template <class Numbers>
size_t winograd_scratch(const Conv3x3Layer& layer) {
  return kProductsBytes + Parts::bytes(layer, kGroup) +
         Transformed<Numbers>::bytes(blocks_of(layer.in_channels), kGroup);
}

// All of a job in one thread. scratch: winograd_scratch<Numbers>(layer) bytes.
template <class Numbers>
void winograd_rows(const RowsJob<float>& job, void* scratch) {
  const Tiles tiles{job};
  char* memory = static_cast<char*>(scratch);
  float* products = reinterpret_cast<float*>(memory);
  memory += kProductsBytes;
  Transformed<Numbers> in(memory + Parts::bytes(job.layer, kGroup), blocks_of(job.layer.in_channels), kGroup);
  in_even_parts(tiles.total(), kGroup, [&](int64_t first, int64_t count) {
    Parts parts(memory, job.layer, kGroup);
    for (int64_t t = first; t < first + count; ++t) parts.add(tiles[t], equal_inputs(job, tiles[t]), job.in.pitch);
    in_even_parts(parts.count(), kGroup, [&](int64_t begin, int64_t together) {
      for (int64_t t = 0; t < together; ++t) in.put(t, job, parts[begin + t]);
      for (int64_t b = job.block_begin; b < job.block_end; ++b)
        parts_of_block(job, parts, begin, together, b, in, 0, products);
    });
  });
  for (int64_t m = 0; m < job.maps; ++m)
    for (int64_t b = job.block_begin; b < job.block_end; ++b) job.out_of(m).zero_borders(b, job.out_row, job.count);
}

// What winograd_together works in.
template <class Numbers>
struct TogetherMemory {
  size_t equal, parts, transformed;
  int64_t at_once;  // parts; in an image, those that tie add less than half

  TogetherMemory(const Conv3x3Layer& layer, int64_t tiles)
      : equal(layer.keep_ties ? (tiles * sizeof(Equal) + 63) / 64 * 64 : 0),
        parts(Parts::bytes(layer, tiles)),
        at_once(layer.keep_ties ? tiles + tiles / 2 + 16 : tiles) {
    transformed = Transformed<Numbers>::bytes(blocks_of(layer.in_channels), at_once);
  }
};

template <class Numbers>
size_t winograd_together_bytes(const Conv3x3Layer& layer, int64_t maps, int64_t height, int64_t width) {
  const TogetherMemory<Numbers> memory(layer, maps * ((height + 3) / 4) * ((width + 3) / 4));
  return memory.equal + memory.parts + memory.transformed;
}

// A job that all threads do together: each transforms a share of the parts, then makes blocks of outputs, or shares of
// them where there are more threads than blocks. memory: winograd_together_bytes<Numbers>(..) bytes.
template <class Numbers>
void winograd_together(const RowsJob<float>& job, void* memory, const Parallel& parallel) {
  const Tiles tiles{job};
  const TogetherMemory<Numbers> sizes(job.layer, tiles.total());
  char* at = static_cast<char*>(memory);
  Equal* equal = reinterpret_cast<Equal*>(at);
  Parts parts(at += sizes.equal, job.layer, tiles.total());
  Transformed<Numbers> in(at + sizes.parts, blocks_of(job.layer.in_channels), sizes.at_once);
  if (job.layer.keep_ties)
    parallel(tiles.total(), [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) equal[t] = equal_inputs(job, tiles[t]);
    });
  for (int64_t t = 0; t < tiles.total(); ++t)
    parts.add(tiles[t], job.layer.keep_ties ? equal[t] : Equal{}, job.in.pitch);

  const int64_t blocks = job.block_end - job.block_begin;
  in_even_parts(parts.count(), sizes.at_once, [&](int64_t begin, int64_t total) {
    parallel(total, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) in.put(t, job, parts[begin + t]);
    });
    const int64_t fit = (total + kGroup - 1) / kGroup, wanted = (parallel.threads + blocks - 1) / blocks;
    const int64_t shares = wanted <= fit ? fit : least(wanted, (total + kPixels - 1) / kPixels);
    parallel(blocks * shares, [&](int64_t from, int64_t to) {
      float* products = static_cast<float*>(scratch(Scratch::worker, kProductsBytes));
      for (int64_t k = from; k < to; ++k) {
        const int64_t block = job.block_begin + k / shares, share = k % shares;
        const int64_t first = share * total / shares, until = (share + 1) * total / shares;
        parts_of_block(job, parts, begin + first, until - first, block, in, first, products);
        for (int64_t m = share * job.maps / shares; m < (share + 1) * job.maps / shares; ++m)
          job.out_of(m).zero_borders(block, job.out_row, job.count);
      }
    });
  });
}

}  // namespace
}  // namespace ddn::cpu
