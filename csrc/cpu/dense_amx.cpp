// dense for bfloat16 weights on AMX tiles: 16 rows of weights as they lie are the A tile, a block of packed x the B
// tile, 16 outputs x 16 rows the C tile. Two by two C tiles at a time; with one block of rows, two by one. A store of a
// tile that comes long after the last one stalls for about 1,000 cycles; one every 32 products prevents it.
#include "cpu/amx.h"
#include "cpu/dense_blocks.h"

namespace ddn::cpu {
namespace {

constexpr int kTile = 16;
constexpr int64_t kStoreEvery = 8;  // steps of 32 inputs

alignas(64) thread_local uint32_t dropped[kTile * kTile];

// Products of the 32 inputs at `weight`, `x`: 32 (or 16: `second` null) outputs, one or two blocks of rows.
template <bool TwoRows, bool TwoOutputs>
DDN_INLINE void step(const BF16* weight, const BF16* second, int64_t stride, const uint32_t* x,
                     const uint32_t* x_second) {
  DDN_TILE_LOAD(6, x, 64);
  DDN_TILE_LOAD_STREAM(4, weight, 2 * stride);
  DDN_TILE_DOT(0, 4, 6);
  if (TwoOutputs) {
    DDN_TILE_LOAD_STREAM(5, second, 2 * stride);
    DDN_TILE_DOT(2, 5, 6);
  }
  if (TwoRows) {
    DDN_TILE_LOAD(7, x_second, 64);
    DDN_TILE_DOT(1, 4, 7);
    if (TwoOutputs) DDN_TILE_DOT(3, 5, 7);
  }
}

// The first `inputs` of the last 32 of `outputs` rows of weights, zeros beside them.
void copy_corner(BF16* to, const BF16* from, int64_t stride, int64_t outputs, int64_t inputs) {
  std::memset(to, 0, 32 * 32 * sizeof(BF16));
  for (int64_t n = 0; n < outputs; ++n) std::memcpy(to + 32 * n, from + n * stride, inputs * sizeof(BF16));
}

template <bool TwoRows, bool TwoOutputs>
void add_tiles(const Panel<BF16>& panel, int64_t n, int64_t block) {
  const int64_t outputs = least(TwoOutputs ? 32 : kTile, panel.outputs - n);
  const bool whole_outputs = outputs % kTile == 0;
  const BF16* weight = panel.weight + n * panel.stride;
  const uint32_t* x = panel.x + block * panel.x_stride;
  DDN_TILE_FENCE();
  DDN_TILE_ZERO(0);
  DDN_TILE_ZERO(1);
  DDN_TILE_ZERO(2);
  DDN_TILE_ZERO(3);
  int64_t since_store = 0;
  for (int64_t k = 0; k < panel.inputs; k += 32, weight += 32, x += kWords<BF16> * kRows) {
    if (whole_outputs && k + 32 <= panel.inputs) {
      step<TwoRows, TwoOutputs>(weight, weight + kTile * panel.stride, panel.stride, x, x + panel.x_stride);
    } else {
      alignas(64) BF16 corner[32 * 32];
      copy_corner(corner, weight, panel.stride, outputs, least(32, panel.inputs - k));
      DDN_TILE_FENCE();
      step<TwoRows, TwoOutputs>(corner, corner + kTile * 32, 32, x, x + panel.x_stride);
    }
    if (++since_store == kStoreEvery) {
      since_store = 0;
      DDN_TILE_STORE(6, dropped, 64);
    }
  }
  alignas(64) float sum[4][kTile * kRows];
  DDN_TILE_STORE(0, sum[0], 64);
  DDN_TILE_STORE(1, sum[1], 64);
  DDN_TILE_STORE(2, sum[2], 64);
  DDN_TILE_STORE(3, sum[3], 64);
  for (int tile = 0; tile < 4; ++tile) {
    if ((tile % 2 && !TwoRows) || (tile / 2 && !TwoOutputs)) continue;
    const int64_t first = n + tile / 2 * kTile;
    float* total = panel.total + ((block + tile % 2) * kMostOutputs + first) * kRows;
    for (int64_t row = 0; row < least(kTile, panel.outputs - first); ++row)
      add_to(total + row * kRows, sum[tile] + row * kRows, panel.first);
  }
}

void multiply_tiles(const DenseParams& p, const void* packed, int64_t begin, int64_t end) {
  tile_configure();
  multiply_panels<BF16, BF16>(p, packed, begin, end, 32, [](const Panel<BF16>& panel) {
    for (int64_t n = 0; n < panel.outputs; n += 32) {
      const bool two_outputs = panel.outputs - n > kTile;
      int64_t block = 0;
      for (; block + 2 <= panel.row_blocks; block += 2)
        two_outputs ? add_tiles<true, true>(panel, n, block) : add_tiles<true, false>(panel, n, block);
      if (block < panel.row_blocks)
        two_outputs ? add_tiles<false, true>(panel, n, block) : add_tiles<false, false>(panel, n, block);
    }
  });
  DDN_TILE_RELEASE();
}

}  // namespace

namespace amx_bf16 {
const DenseKernel dense_bfloat16{packed_bytes<BF16>, pack<BF16, BF16>, multiply_tiles};
}  // namespace amx_bf16
}  // namespace ddn::cpu
