// conv3x3, one layer: y[n,i,j,o] = relu(bias[o] + sum over c, dy, dx of x[n,i+dy-1,j+dx-1,c] * weight[o,c,dy,dx]) for a
// map x, a pooled one unpooled on the way, or an image; the result as a map, pooled with switches, or scored
// (conv3x3_input.cuh, conv3x3_end.cuh; SPEC sections 2 and 6, identities 5 and 7 to 9). 16-bit operands, float32 sums.
//
// A product of matrices whose left side, pixels by (tap, channel), is never made: 32 channels at a time, the tile's
// pixels and a border of one are brought into shared memory, and the nine taps read them at nine offsets.
//
// Block: 128 threads, a tile of 2x2 windows by outputs (conv3x3_plan.h); blockIdx.x = map, tile of it, tile
// of outputs; blockIdx.z = slice of the input channels. Warp: its half of the pixels, or all, by its share of outputs,
// as fragments of 16 pixels by 8 outputs. Rows of a fragment: conv3x3_end.cuh. Columns: the weights' layout holds [16
// pairs of inputs,16 outputs] words, so one 16-byte load brings a lane the right fragments' words of four neighbouring
// outputs; these go to four fragments, whose columns are therefore outputs 4*column + 0..3 of a group of 32. The order
// of outputs within a sum of products is free; this one spares a layout of its own, and gives lanes neighbouring
// channels to write.
//
// Bytes per block and 32 channels: 64 times pixels with border (1.4 to 1.7 times the tile's, more for small tiles), 576
// times outputs of weights, for 576 * pixels * outputs operations: with 160 x 128, 130 operations a byte from the
// second-level cache. From memory x, switches and weights are read about once, y is written once.
//
// Time: copies are asynchronous, weights three taps ahead, the next block of channels from tap 0 of this one; one
// barrier a tap. Staged values of an unpooled input have landed, and are seen by all, at tap 4, when they are spread.
#pragma once
#include <cstring>

#include "cuda/conv3x3_end.cuh"
#include "cuda/conv3x3_input.cuh"
#include "cuda/conv3x3_slices.cuh"

namespace ddn {

// The ring of weights. 16 bytes are four outputs of one pair of inputs; pairs 2 and 3 of four exchange halves of 32
// bytes, so that eight lanes, four pairs by eight outputs, read from different banks.
template <class Tile>
struct Conv3x3Weights {
  const Conv3x3Launch& p;
  Shared to;
  const uint32_t* from;  // of this thread, for the first step
  int steps, blocks_left, offset;

  DDN_DEVICE Conv3x3Weights(const Conv3x3Launch& p, Shared memory, int first_output, int first_block, int steps)
      : p(p), to(memory + Tile::kWeightsAt), steps(steps) {
    const int thread = static_cast<int>(threadIdx.x), pair = thread / 4 % 16;
    const int64_t out_block = first_output / 32;
    blocks_left = (p.out_channels + 31) / 32 - static_cast<int>(out_block);
    from = p.weight + (out_block * p.in_blocks + first_block) * Tile::kTaps * 512 + thread * 4;
    offset = thread / 64 * 1024 + pair * 64 + ((thread % 4 ^ (pair & 2)) << 4);
  }

  DDN_DEVICE void start(int step) {
    if (step >= steps) return;
    const Shared stage = to + step % Tile::kStages * Tile::kWeightBytes + offset;
    const int64_t stride = static_cast<int64_t>(p.in_blocks) * Tile::kTaps * 512;
    DDN_UNROLL
    for (int block = 0; block < Tile::kOutputs / 32; ++block) {
      const bool exists = block < blocks_left;
      copy_async<16>(stage + block * 2048, exists ? from + block * stride + step * 512 : p.weight, exists);
    }
  }

  // A lane's bytes in a stage, for pair lane % 4 and outputs 4*(lane/4) to +3 of the first group.
  static DDN_DEVICE int lane_offset(int lane) {
    const int pair = lane % 4, outputs = lane / 4;
    return outputs / 4 * 1024 + pair * 64 + ((outputs % 4 ^ (pair & 2)) << 4);
  }
};

template <class Tile>
DDN_GLOBAL void DDN_LAUNCH_BOUNDS(Tile::kThreads, 2) conv3x3_kernel(const Conv3x3Launch p) {
  DDN_SHARED_MEMORY(shared);
  const Shared memory = shared_address(shared);
  const int x = static_cast<int>(blockIdx.x);
  const Conv3x3Place place = Conv3x3Place::of<Tile>(p, x);
  const int slice = static_cast<int>(blockIdx.z);
  const int begin = p.in_blocks * slice / p.slices, end = p.in_blocks * (slice + 1) / p.slices;
  const int steps = (end - begin) * Tile::kTaps;
  constexpr bool kPooled = Tile::kInput == Conv3x3Input::pooled, kImage = Tile::kInput == Conv3x3Input::image;

  typename Conv3x3InputOf<Tile>::type input(p, memory, place);
  Conv3x3Weights<Tile> weights(p, memory, place.output, begin, steps);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int down = thread / 32 % Tile::kWarpsDown, across = thread / 32 / Tile::kWarpsDown;

  Conv3x3Sums<Tile> sums = {};
  int slot[Tile::kRowTiles];  // of this lane's row of each left fragment, at tap 0
  DDN_UNROLL
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    const int m = (down * Tile::kRowTiles + i) * 16 + lane % 16, window = m / 16 * 4 + m % 8 / 2;
    const int real = window < p.rows * p.columns ? window : 0;  // what is computed of others is not written
    slot[i] = kImage ? m : (real / p.columns * 2 + m % 2) * p.pitch + real % p.columns * 2 + m / 8 % 2;
  }
  const int weight_offset = Tile::kWeightsAt + across * Tile::kGroups * 2048 + weights.lane_offset(lane);

  input.start(begin);  // its copies join those of the first weights
  if (kPooled) {
    commit_copies();
    wait_for_copies<0>();
    synchronize_block();
    input.finish(begin);
  }
  DDN_UNROLL
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    weights.start(step);
    commit_copies();
  }

  int step = 0;
  for (int block = begin; block < end; ++block) {
    const int buffer = kImage ? 0 : block % 2 * Tile::kInputBytes;
    // nine taps' addresses at once would not fit the registers
    DDN_NO_UNROLL
    for (int tap = 0; tap < Tile::kTaps; ++tap, ++step) {
      wait_for_copies<Tile::kStages - 2>();
      synchronize_block();
      weights.start(step + Tile::kStages - 1);
      if (!kImage && tap == 0 && block + 1 < end) input.start(block + 1);
      commit_copies();
      if (kPooled && tap == Tile::kStages && block + 1 < end) input.finish(block + 1);

      const int shift = tap / 3 * p.pitch + tap % 3;
      const Shared stage = memory + weight_offset + step % Tile::kStages * Tile::kWeightBytes;
      DDN_UNROLL
      for (int half = 0; half < 2; ++half) {  // 16 channels
        uint32_t right[Tile::kGroups * 4][2];
        DDN_UNROLL
        for (int group = 0; group < Tile::kGroups; ++group) {
          const uint4 low = load_shared16(stage + group * 2048 + half * 512);
          const uint4 high = load_shared16(stage + group * 2048 + half * 512 + 256);
          const uint32_t words[4][2] = {{low.x, high.x}, {low.y, high.y}, {low.z, high.z}, {low.w, high.w}};
          memcpy(right[group * 4], words, sizeof words);
        }
        DDN_UNROLL
        for (int i = 0; i < Tile::kRowTiles; ++i) {
          uint32_t left[4];
          load_matrices(left, memory + buffer + slot_offset(slot[i] + (kImage ? 0 : shift), half * 2 + lane / 16));
          DDN_UNROLL
          for (int j = 0; j < Tile::kGroups * 4; ++j)
            multiply_add<typename Tile::T>(sums[i][j], left, right[j][0], right[j][1]);
        }
      }
    }
  }
  wait_for_copies<0>();
  synchronize_block();  // shared memory is free

  constexpr int kAcross = Tile::kGroups * 4, kFours = Tile::kRowTiles * kAcross;
  const auto four = [&](int k) { return sums[k / kAcross][k % kAcross]; };
  const auto synchronize = [] { synchronize_block(); };
  if (p.slices > 1 && !gather_slices<kFours, 2 * kAcross, Tile::kThreads>(p, four, memory, thread, synchronize)) return;
  const Conv3x3End<Tile> out(p, Conv3x3Place::of<Tile>(p, not_before(x)), not_before(thread));
  if (p.score)
    out.score(sums, memory);
  else if (p.y_switches)
    out.pooled(sums);
  else
    out.map(sums);
}

}  // namespace ddn
