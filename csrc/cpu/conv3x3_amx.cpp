// The stage in bfloat16 with AMX tiles: sums in float32, every layer's result rounded to bfloat16.
//
// One register tile is 32 pixels x 32 outputs, four AMX tiles of sums. For each block of 32 inputs and each tap it
// loads two tiles of pixels (16 consecutive pixels of a blocked map are 1 KiB in a row) and two of weights, and
// multiplies each with each: four products for four loads. What measurement on Sapphire Rapids taught:
// - bias comes in as a tile with stride 0; weights are loaded as streams, maps are not;
// - the results of a tile are rounded and stored while the next one's first block multiplies;
// - a tile store more than about 2,100 cycles after the last costs some 900, so there is one for nothing in every
// block;
// - prefetching and other shapes of tiles gain nothing, and the zeros of an unpooled map cannot be skipped.
#include "cpu/amx.h"
#include "cpu/conv3x3.h"
#include "cpu/conv3x3_stage.h"

namespace ddn::cpu {
namespace {

constexpr int64_t kTile = 32;                      // pixels
constexpr int64_t kTapWeights = kBlock * kBlock;   // [half,pair,16,2]
constexpr int64_t kHalfWeights = kTapWeights / 2;  // one AMX tile
constexpr int64_t kQuarter = 16 * 16;              // sums of one AMX tile: [pixel half][output half][16,16]

// Pixel n of a tile of sums: ReLU, rounded, the sign cleared that -0 and NaN may have (pool_block compares integers).
DDN_INLINE void finish_pixel(const float* sums, int n, BF16* out) {
  const float* at = sums + n / 16 * 2 * kQuarter + n % 16 * 16;
#if defined(__AVX512BF16__)
  const __m512 zero = _mm512_setzero_ps();
  const __m512 low = _mm512_max_ps(zero, _mm512_loadu_ps(at)),
               high = _mm512_max_ps(zero, _mm512_loadu_ps(at + kQuarter));
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  _mm512_storeu_si512(out + n * kBlock, _mm512_and_si512(both, _mm512_set1_epi16(0x7fff)));
#else
  for (int half = 0; half < 2; ++half)
    for (int c = 0; c < 16; c += kWidth) store(out + n * kBlock + half * 16 + c, relu(load(at + half * kQuarter + c)));
  for (int c = 0; c < kBlock; ++c) out[n * kBlock + c].bits &= 0x7fff;
#endif
}

struct TileJob {
  const BF16* in;  // the first pixel's values under the first tap
  int64_t plane;
  int64_t blocks;
  const int64_t* offsets;
  const BF16* weights;
  const float* bias;  // [32]
};

// A tile whose sums are there but not yet rounded; a tile of no map at first.
struct Unfinished {
  const float* sums;
  BF16* out;

  DDN_INLINE void four(int group) const {
    for (int n = 4 * group; n < 4 * group + 4; ++n) finish_pixel(sums, n, out);
  }
};

#define DDN_LOAD_BIAS(bias)         \
  DDN_TILE_LOAD(0, bias, 0);        \
  DDN_TILE_LOAD(1, (bias) + 16, 0); \
  DDN_TILE_LOAD(2, bias, 0);        \
  DDN_TILE_LOAD(3, (bias) + 16, 0)

#define DDN_MULTIPLY(at, weights)                        \
  DDN_TILE_LOAD_STREAM(6, weights, 64);                  \
  DDN_TILE_LOAD(4, at, 64);                              \
  DDN_TILE_DOT(0, 4, 6);                                 \
  DDN_TILE_LOAD(5, (at) + 16 * kBlock, 64);              \
  DDN_TILE_DOT(2, 5, 6);                                 \
  DDN_TILE_LOAD_STREAM(7, (weights) + kHalfWeights, 64); \
  DDN_TILE_DOT(1, 4, 7);                                 \
  DDN_TILE_DOT(3, 5, 7)

#define DDN_STORE_SUMS(sums)                    \
  DDN_TILE_STORE(0, sums, 64);                  \
  DDN_TILE_STORE(1, (sums) + kQuarter, 64);     \
  DDN_TILE_STORE(2, (sums) + 2 * kQuarter, 64); \
  DDN_TILE_STORE(3, (sums) + 3 * kQuarter, 64)

void tile_nine_taps(const TileJob& job, float* sums, const Unfinished& last) {
  alignas(64) char nowhere[64];
  DDN_TILE_FENCE();
  DDN_LOAD_BIAS(job.bias);
  const BF16 *in = job.in, *weights = job.weights;
#pragma GCC unroll 9
  for (int t = 0; t < 9; ++t) {
    DDN_MULTIPLY(in + job.offsets[t], weights + t * kTapWeights);
    if (t < 8) last.four(t);
  }
  for (int64_t b = 1; b < job.blocks; ++b) {
    in += job.plane;
    weights += 9 * kTapWeights;
    DDN_TILE_STORE(4, nowhere, 0);
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) {
      DDN_MULTIPLY(in + job.offsets[t], weights + t * kTapWeights);
    }
  }
  DDN_STORE_SUMS(sums);
}

void tile_one_tap(const TileJob& job, float* sums, const Unfinished& last) {
  DDN_TILE_FENCE();
  DDN_LOAD_BIAS(job.bias);
  DDN_MULTIPLY(job.in + job.offsets[0], job.weights);
  for (int group = 0; group < 8; ++group) last.four(group);
  DDN_STORE_SUMS(sums);
}

struct AmxKernel {
  using E = BF16;

  static void enter() {
    tile_configure();
  }
  static void leave() {
    DDN_TILE_RELEASE();
  }
  static size_t scratch_bytes(const Conv3x3Layer&) {
    return 0;
  }
  static int64_t row_unit(const Conv3x3Layer&) {
    return 1;
  }
  static size_t together_bytes(const Conv3x3Layer&, int64_t, int64_t, int64_t) {
    return 0;
  }
  static void together(const RowsJob<BF16>&, void*, const Parallel&) {
  }

  static void rows(const RowsJob<BF16>& job, void*) {
    int64_t offsets[9];
    const int64_t pitch = job.in.pitch, taps = tap_offsets(job.layer, pitch, offsets);
    const int64_t blocks = in_blocks_of(job.layer);
    const BF16* weights = static_cast<const BF16*>(job.layer.weight);
    for (int64_t b = job.block_begin; b < job.block_end; ++b) {
      alignas(64) float bias[kBlock];
      load_bias(job.layer, b, bias);
      for (int64_t m = 0; m < job.maps; ++m) {
        const Rows<BF16> in = job.in_of(m), out = job.out_of(m);
        const TileJob first{
            in.pixel(0, job.in_row, -1), in.plane, blocks, offsets, weights + b * blocks * taps * kTapWeights, bias};
        line(first, out.pixel(b, job.out_row, 0), job.count * pitch - 1, taps == 1);
        out.zero_borders(b, job.out_row, job.count);
      }
    }
  }

 private:
  // All pixels of the rows as one line. The last tile overlaps the one before; where there is but one, it writes into
  // rows yet to be made, or the slack after the map.
  static void line(const TileJob& first, BF16* out, int64_t pixels, bool one_tap) {
    alignas(64) float sums[2][4 * kQuarter] = {};
    alignas(64) BF16 nowhere[kTile * kBlock];
    Unfinished last{sums[1], nowhere};
    int side = 0;
    for (int64_t q = 0; q < pixels; q += kTile, side ^= 1) {
      const int64_t at = pixels - q < kTile && q > 0 ? pixels - kTile : q;
      TileJob job = first;
      job.in += at * kBlock;
      one_tap ? tile_one_tap(job, sums[side], last) : tile_nine_taps(job, sums[side], last);
      last = {sums[side], out + at * kBlock};
    }
    for (int group = 0; group < 8; ++group) last.four(group);
  }
};

}  // namespace

// p's weights are all in the pairs layout.
void conv3x3_amx(const Conv3x3Params& p, const Parallel& parallel) {
  run_stage<AmxKernel>(p, parallel);
}

}  // namespace ddn::cpu
