// conv3x3, one layer, for sm_90a: what conv3x3.cuh computes (SPEC sections 2 and 6, identities 5 and 7 to 9), by
// products of warpgroups. Same parameters, same weights, same inputs but the image, same ends.
//
//   sums [64 outputs, pixels] += weights [64 outputs, 16 channels] @ x [16 channels, pixels]    per tap
//
// Weights are the left side, in registers: a word of the pairs layout, two neighbouring inputs of one output, is a word
// of a left fragment, so the one layout serves both kernels. Row r of a warp's 16 is output 2*r, row r+8 the next.
// Lanes whose pairs would meet in a bank (pair and pair + 2 lie 128 bytes apart) load their two outputs in opposite
// order. Pixels are the right side, in shared memory without swizzling: 8 neighbouring pixels of a row times 8
// channels, 16 bytes each, are a core matrix, contiguous, so free of bank conflicts wherever it begins; a tap is
// nothing but an offset of whole slots of 16 bytes, which the descriptor's start may have. (A swizzled row of 64
// channels would put the tap's offset into the swizzling's phase.) The tile is strips, 8 pixels wide and `kRows` high:
// one product of N = 8 * kRows.
//
// Block: 256 threads, a tile of pixels by 64 outputs (conv3x3_plan.h), blockIdx as in conv3x3.cuh. Warps 0 to 3
// multiply; warps 4 to 6 bring pixels, 32 channels at a time, warp 7 weights, by bulk copies, a row of the kernel at a
// time (conv3x3_wgmma_input.cuh). Two blocks share a multiprocessor: while one begins or ends, the other multiplies.
//
// Bytes a tap of 32 channels moves through shared memory while the matrix units take P cycles, P = 320 pixels (or 240):
//   right side, read       64 P                  64 a cycle
//   left side              2 * 4096              25.6 (34), half of them written, half read
//   pixels, written        64 P * border / 9     9, the border being 1.24 to 1.31 (1.3) of P
// of 128 a cycle: 77 (84) %. From the second-level cache 12.8 + 9 bytes a cycle, 5.1 TB/s over the chip at full rate:
// near what it gives. From memory x, switches and weights are read about once, y is written once.
//
// Time: products are asynchronous; those of one tap run while the next tap's weights come from shared memory into
// registers that the tap before the last has left (hence three sets). The input of the next block of channels is
// brought while this one is multiplied, the ring holds 12 taps of weights.
#pragma once
#include <cstring>

#include "cuda/conv3x3_slices.cuh"
#include "cuda/conv3x3_wgmma_end.cuh"
#include "cuda/conv3x3_wgmma_input.cuh"

namespace ddn {

// This lane's words of left fragments.
template <class Tile>
struct WgmmaWeights {
  Shared first, second;  // of an even and an odd output, or the other way round
  bool swapped;

  DDN_DEVICE WgmmaWeights(Shared memory, int warp, int lane) {
    const int pair = lane % 4;
    swapped = pair >= 2;
    first = memory + Tile::kWeightsAt + warp / 2 * Tile::kOutBlockBytes + warp % 2 * 1024 + pair * 64 + lane / 4 * 8;
    second = first + (swapped ? 0 : 4);
    first = first + (swapped ? 4 : 0);
  }

  DDN_DEVICE void load(uint32_t (&left)[2][4], int stage, int tap) const {
    DDN_UNROLL
    for (int k = 0; k < 4; ++k) {  // four pairs of inputs each
      const int at = stage * Tile::kWeightBytes + tap * 2048 + k * 256;
      const uint32_t a = load_shared4(first + at), b = load_shared4(second + at);
      left[k / 2][k % 2 * 2] = swapped ? b : a;
      left[k / 2][k % 2 * 2 + 1] = swapped ? a : b;
    }
    DDN_UNROLL
    for (int k = 0; k < 8; ++k) settle(left[k / 4][k % 4]);
  }
};

// All products of a block's `blocks` blocks of input channels.
template <class Tile>
DDN_DEVICE void multiply(WgmmaSums<Tile>& sums, const Conv3x3Barriers<Tile>& barriers, Shared memory, int blocks,
                         int warp, int lane) {
  const WgmmaWeights<Tile> weights(memory, warp, lane);
  const uint64_t all = descriptor_of(shared_offset(memory), Tile::kPlaneBytes, Tile::kPitch * 16);
  uint32_t left[3][2][4];
  wait_for_phase(barriers.weights_full(0), 0);
  weights.load(left[0], 0, 0);
  int stage = 0;
  uint32_t phase = 0;  // of the ring
  DDN_NO_UNROLL
  for (int block = 0; block < blocks; ++block) {
    const int buffer = block % 2;
    wait_for_phase(barriers.input_full(buffer), block / 2 & 1);
    DDN_NO_UNROLL
    for (int down = 0; down < 3; ++down) {
      const uint64_t right = all + static_cast<uint64_t>((buffer * Tile::kInputBytes >> 4) + down * Tile::kPitch);
      DDN_UNROLL
      for (int tap = 0; tap < 3; ++tap) {
        fence_registers();
        DDN_UNROLL
        for (int half = 0; half < 2; ++half) {  // 16 channels
          DDN_UNROLL
          for (int strip = 0; strip < Tile::kStrips; ++strip)
            begin_product<typename Tile::T>(sums[strip], left[tap][half],
                                            right + (half * 2 * Tile::kPlaneBytes >> 4) + strip * 8 + tap);
        }
        commit_products();
        if (tap < 2) {
          weights.load(left[tap + 1], stage, tap + 1);
        } else {  // this stage's words are in registers: the products of tap 2 have begun
          synchronize_warp();
          if (lane == 0) arrive(barriers.weights_empty(stage));
          if (++stage == Tile::kStages) stage = 0, phase ^= 1;
          if (block + 1 < blocks || down < 2) {
            wait_for_phase(barriers.weights_full(stage), phase);
            weights.load(left[0], stage, 0);
          }
        }
        wait_for_products<1>();
        if (tap == 0 && down == 0 && block > 0) {  // the last products of the block before are done
          synchronize_warp();
          if (lane == 0) arrive(barriers.input_empty(1 - buffer));
        }
      }
    }
  }
  wait_for_products<0>();
  DDN_UNROLL
  for (int k = 0; k < Tile::kStrips * Tile::kValues; ++k) settle(sums[k / Tile::kValues][k % Tile::kValues]);
}

template <class Tile>
DDN_GLOBAL void DDN_LAUNCH_BOUNDS(Tile::kThreads, 2) conv3x3_wgmma_kernel(const Conv3x3Launch p) {
  DDN_SHARED_MEMORY(shared);
  const Shared memory = shared_address(shared);
  const int x = static_cast<int>(blockIdx.x), slice = static_cast<int>(blockIdx.z);
  const Conv3x3Place place = Conv3x3Place::of<Tile>(p, x);
  const int begin = p.in_blocks * slice / p.slices, end = p.in_blocks * (slice + 1) / p.slices;
  const Conv3x3Barriers<Tile> barriers{memory + Tile::kBarriersAt};
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) barriers.init();
  synchronize_block();

  if (thread >= Tile::kConsumers) {
    leave_registers<Tile::kProducerRegisters>();
    const int producer = thread - Tile::kConsumers;
    if (producer < Tile::kInputThreads) {
      if (p.switches)
        bring_input(WgmmaPooledInput<Tile>(p, place, producer, memory), barriers, memory, begin, end);
      else
        bring_input(WgmmaMapInput<Tile>{p, place, producer}, barriers, memory, begin, end);
    } else if (producer == Tile::kInputThreads) {
      bring_weights(p, barriers, memory, place, begin, end);
    }
  } else {
    take_registers<Tile::kConsumerRegisters>();
    WgmmaSums<Tile> sums = {};
    multiply<Tile>(sums, barriers, memory, end - begin, thread / 32, thread % 32);
    const auto synchronize = [] { synchronize_some<1, Tile::kConsumers>(); };
    synchronize();  // shared memory is free
    const auto four = [&](int k) { return sums[k / (Tile::kValues / 4)] + k % (Tile::kValues / 4) * 4; };
    constexpr int kFours = Tile::kStrips * Tile::kValues / 4;
    if (p.slices > 1 && !gather_slices<kFours, 8, Tile::kConsumers>(p, four, memory, thread, synchronize)) return;
    const Conv3x3WgmmaEnd<Tile> out(p, Conv3x3Place::of<Tile>(p, not_before(x)), not_before(thread));
    if (p.score)
      out.score(sums, memory);
    else if (p.y_switches)
      out.pooled(sums);
    else
      out.map(sums);
  }
}

}  // namespace ddn
