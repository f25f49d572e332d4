// dense: y = x @ weight^T + bias, perhaps ReLU: fc6, fc7 and their kin (SPEC sections 3 and 5) as products of matrices.
// What its variants share; each file that includes this is compiled for its own instruction set.
//
// Few rows of x meet many weights, so the time is that of streaming the weights from memory: each is read once a call.
// x is packed into blocks of 16 rows, the lanes of a vector or the columns of a tile. A thread takes outputs, and of
// those as many at a time as stay in its cache, panel by panel of their inputs, while all blocks of rows pass by. Sums
// are float32, panel by panel, so that rounding grows with a panel's length and the number of panels, not their
// product.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "cpu/dense.h"
#include "cpu/vec.h"

namespace ddn::cpu {
namespace {

static_assert(std::endian::native == std::endian::little, "a pair of bfloat16 is taken apart as one 32-bit word");

constexpr int kRows = 16;              // of x in a block
constexpr int64_t kMostOutputs = 128;  // at a time: what stays in the second-level cache with a panel of inputs
constexpr int64_t kPanel = 1024;       // inputs

DDN_INLINE int64_t blocks_of(int64_t n, int64_t block) {
  return (n + block - 1) / block;
}

// Words of 32 bits that 32 values of type E are.
template <class E>
constexpr int kWords = 32 * sizeof(E) / sizeof(uint32_t);

template <class E>
int64_t packed_bytes(const DenseParams& p) {
  return blocks_of(p.rows, kRows) * kRows * blocks_of(p.inputs, 32) * 32 * static_cast<int64_t>(sizeof(E));
}

// bfloat16 widened kSplit at a time: the even ones, then the odd ones. In their own order they cost twice as much.
constexpr int kSplit = 2 * kWidth;

DDN_INLINE void widen_split(float* to, const BF16* from) {
  const UVec pairs = load_bits<UVec>(from);
  store(to, (Vec)(pairs << 16));
  store(to + kWidth, (Vec)(pairs & 0xffff0000u));
}

// Input blocks [begin, end) of x to packed [M/16][K/32][kWords][16] words, each a float or a pair of bfloat16 of one
// row; zeros beyond M and K. Values are rounded to R, the weights' dtype, and kept as E: where that is wider, split.
template <class E, class R, class X>
void pack_as(const DenseParams& p, uint32_t* packed, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_of(p.inputs, 32);
  for (int64_t first = 0; first < p.rows; first += kRows)
    for (int64_t block = begin; block < end; ++block) {
      const int count = static_cast<int>(least(32, p.inputs - 32 * block));
      alignas(64) E values[kRows][32] = {};
      for (int64_t row = 0; row < least(kRows, p.rows - first); ++row) {
        const X* from = static_cast<const X*>(p.x) + (first + row) * p.inputs + 32 * block;
        alignas(64) R rounded[32] = {};
        for (int k = 0; k < count; k += kWidth) store(rounded + k, load_some(from + k, count - k));
        if constexpr (sizeof(E) > sizeof(R))
          for (int k = 0; k < 32; k += kSplit) widen_split(values[row] + k, rounded + k);
        else
          std::memcpy(values[row], rounded, sizeof rounded);
      }
      uint32_t words[kRows][kWords<E>];
      std::memcpy(words, values, sizeof words);
      uint32_t* to = packed + (first / kRows * blocks + block) * kWords<E> * kRows;
      for (int k = 0; k < kWords<E>; ++k)
        for (int row = 0; row < kRows; ++row) to[k * kRows + row] = words[row][k];
    }
}

template <class E, class R>
void pack(const DenseParams& p, void* packed, int64_t begin, int64_t end) {
  uint32_t* words = static_cast<uint32_t*>(packed);
  if (p.x_dtype == Dtype::float32)
    pack_as<E, R, float>(p, words, begin, end);
  else
    pack_as<E, R, BF16>(p, words, begin, end);
}

// The product of a panel of inputs, for some outputs and all rows.
template <class W>
struct Panel {
  const W* weight;  // [outputs][stride], of which `inputs` are in the panel
  int64_t stride;   // K
  int64_t begin;    // the panel's first input
  int64_t outputs;
  const uint32_t* x;  // [row_blocks][x_stride], each [inputs/32][kWords][16]
  int64_t x_stride;
  int64_t row_blocks;
  int64_t inputs;  // a multiple of 32 but for the last panel
  float* total;    // [row_blocks][kMostOutputs][16]: to be added to, or with `first` set
  bool first;
};

DDN_INLINE void add_to(float* total, const float* sum, bool first) {
  for (int k = 0; k < kRows; k += kWidth) store(total + k, first ? load(sum + k) : load(total + k) + load(sum + k));
}

// Outputs of blocks [begin, end) of 32, `together` at a time when there is but one block of rows: then nothing of a
// weight is used twice, and the longer the stretches that are read, the better.
template <class E, class W, class Add>
DDN_INLINE void multiply_panels(const DenseParams& p, const void* packed, int64_t begin, int64_t end, int64_t together,
                                Add add) {
  alignas(64) float total[kDenseRows / kRows * kMostOutputs * kRows];
  const int64_t row_blocks = blocks_of(p.rows, kRows), x_stride = blocks_of(p.inputs, 32) * kWords<E> * kRows;
  const int64_t last = least(end * kDenseBlock, p.outputs), step = row_blocks == 1 ? together : kMostOutputs;
  for (int64_t n0 = begin * kDenseBlock; n0 < last; n0 += step) {
    const int64_t outputs = least(step, last - n0);
    for (int64_t k0 = 0; k0 < p.inputs; k0 += kPanel)
      add(Panel<W>{.weight = static_cast<const W*>(p.weight) + n0 * p.inputs + k0,
                   .stride = p.inputs,
                   .begin = k0,
                   .outputs = outputs,
                   .x = static_cast<const uint32_t*>(packed) + k0 / 32 * kWords<E> * kRows,
                   .x_stride = x_stride,
                   .row_blocks = row_blocks,
                   .inputs = least(kPanel, p.inputs - k0),
                   .total = total,
                   .first = k0 == 0});
    for (int64_t row = 0; row < p.rows; ++row)
      for (int64_t n = 0; n < outputs; ++n) {
        const float sum = total[(row / kRows * kMostOutputs + n) * kRows + row % kRows];
        const float value = p.bias ? sum + p.bias[n0 + n] : sum;
        p.y[row * p.outputs + n0 + n] = p.relu && value < 0 ? 0.0f : value;
      }
  }
}

// Rows of weights whose distance is a multiple of this lie in one set of the first-level cache, which holds kWays.
constexpr int64_t kSetStride = 4096;
constexpr int kWays = 8;
constexpr int64_t kAhead = 512;            // bytes of a row of weights that are fetched ahead of their use
constexpr int64_t kMostAhead = 256 << 10;  // bytes of whole rows fetched in the order of memory

template <class W>
DDN_INLINE bool in_one_set(int64_t stride) {
  return stride * static_cast<int64_t>(sizeof(W)) % kSetStride == 0;
}

// Outputs at a time for one block of rows, of the `Most` that registers hold.
template <int Most, class W>
DDN_INLINE int64_t outputs_together(int64_t inputs) {
  return in_one_set<W>(inputs) ? least(Most, kWays) : Most;
}

// Asks for weights that come soon after input k of the panel, for G outputs whose weights begin at `weight`. When the
// next block of rows meets the same weights they are in the cache, so the first one asks.
//
// Where rows share a set the first-level cache cannot hold what is ahead of them all. For one block of rows the second
// level is asked instead, for the next G outputs and in the order of memory, in which it streams best: fc6-deconv took
// a quarter less, fc7 a seventh.
template <int G, class W>
DDN_INLINE void fetch_ahead(const Panel<W>& panel, const W* weight, int64_t k) {
  const int64_t rows = G * panel.stride;
  if (panel.row_blocks == 1 && in_one_set<W>(panel.stride) && rows <= kMostAhead / static_cast<int64_t>(sizeof(W))) {
    const char* next = reinterpret_cast<const char*>(weight - panel.begin + rows + G * (panel.begin + k));
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) __builtin_prefetch(next + 64 * g, 0, 2);
    return;
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) __builtin_prefetch(reinterpret_cast<const char*>(weight + g * panel.stride + k) + kAhead);
}

// All outputs of a panel for Blocks blocks of rows, Group at a time and the rest one by one.
template <int Group, int Blocks, class W, class Products>
DDN_INLINE void add_in_groups(const Panel<W>& panel, Products products, int64_t block) {
  const uint32_t* x = panel.x + block * panel.x_stride;
  float* total = panel.total + block * kMostOutputs * kRows;
  const W* weight = panel.weight;
  int64_t n = 0;
  for (; n + Group <= panel.outputs; n += Group, weight += Group * panel.stride)
    products.template add<Group, Blocks>(panel, weight, x, total + n * kRows, block == 0);
  for (; n < panel.outputs; ++n, weight += panel.stride)
    products.template add<1, Blocks>(panel, weight, x, total + n * kRows, block == 0);
}

// All rows: Pair outputs for two blocks at a time where that is not 0, Single for what is left.
template <int Single, int Pair, class W, class Products>
DDN_INLINE void add_all(const Panel<W>& panel, Products products) {
  int64_t block = 0;
  if constexpr (Pair > 0)
    for (; block + 2 <= panel.row_blocks; block += 2) add_in_groups<Pair, 2>(panel, products, block);
  for (; block < panel.row_blocks; ++block) {
    if (Single > kWays && in_one_set<W>(panel.stride))
      add_in_groups<(Single > kWays ? kWays : Single), 1>(panel, products, block);
    else
      add_in_groups<Single, 1>(panel, products, block);
  }
}

}  // namespace
}  // namespace ddn::cpu
