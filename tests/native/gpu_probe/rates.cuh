// What products of warpgroups reach on this device when nothing else is done, in the shapes of the convolution's tiles:
// the ceiling of its kernel, and whether a right side that begins at any 16 bytes is as fast as an aligned one. And
// what bulk copies bring from the second-level cache, of as many bytes as the weights of a layer of 512 channels.
#pragma once
#include <cstdio>

#include "assumptions.h"
#include "cuda/conv3x3_wgmma_tile.cuh"
#include "timing.cuh"

namespace ddn::probe {

struct RateLaunch {
  float* sums;  // [blocks]
  int rounds;   // of nine taps of 32 channels
  uint32_t start, of_eight_values, of_eight_rows, of_strips,
      of_rows;  // of the right sides, from the block's first byte
};

template <class Tile>
DDN_GLOBAL void DDN_LAUNCH_BOUNDS(128, 2) rate_kernel(const RateLaunch p) {
  DDN_SHARED_MEMORY(shared);
  const Shared memory = shared_address(shared);
  const int thread = static_cast<int>(threadIdx.x);
  // values of 1 to 2 and random last bits: the time depends on the data
  uint32_t bits = 12345u + static_cast<uint32_t>(thread);
  const auto random = [&] { return bits = bits * 1664525u + 1013904223u; };
  for (int i = thread; i < Tile::kInputBytes / 4; i += 128)
    store_shared4(memory + i * 4, 0x3f803f80u | (random() >> 9 & 0x807f807fu));
  uint32_t left[3][2][4];
  DDN_UNROLL
  for (int k = 0; k < 24; ++k) left[k / 8][k / 4 % 2][k % 4] = 0x3f803f80u | (random() >> 9 & 0x807f807fu);
  fence_for_products();
  synchronize_block();
  float sums[Tile::kStrips][Tile::kValues] = {};
  const uint64_t all = descriptor_of(shared_offset(memory) + p.start, p.of_eight_values, p.of_eight_rows);
  DDN_NO_UNROLL
  for (int round = 0; round < p.rounds * 3; ++round) {
    DDN_UNROLL
    for (int tap = 0; tap < 3; ++tap) {
      fence_registers();
      DDN_UNROLL
      for (int half = 0; half < 2; ++half) {
        DDN_UNROLL
        for (int strip = 0; strip < Tile::kStrips; ++strip)
          begin_product<typename Tile::T>(
              sums[strip], left[tap][half],
              all + (half * 2 * p.of_eight_values + strip * p.of_strips + tap * p.of_rows >> 4));
      }
      commit_products();
      wait_for_products<1>();
    }
  }
  wait_for_products<0>();
  float sum = 0;
  DDN_UNROLL
  for (int k = 0; k < Tile::kStrips * Tile::kValues; ++k) {
    settle(sums[k / Tile::kValues][k % Tile::kValues]);
    sum += sums[k / Tile::kValues][k % Tile::kValues];
  }
  if (sum == 1.5f) p.sums[blockIdx.x] = sum;
}

template <class Tile>
double rate_of(bool aligned, int blocks_each, int multiprocessors) {
  constexpr uint32_t kPlane = Tile::kPlaneBytes, kRow = Tile::kPitch * 16;
  RateLaunch p{nullptr, 400, 16, kPlane, kRow, 128, 16};
  // aligned ones overlap: only the time counts
  if (aligned) p = {nullptr, 400, 0, kPlane / 128 * 128, 128, 1024, 0};
  const DeviceArray<float> sums(static_cast<size_t>(blocks_each * multiprocessors));
  p.sums = sums.at();
  // as much shared memory as leaves room for so many blocks
  const int bytes = blocks_each == 2 ? Tile::kBytes : 2 * Tile::kBytes;
  const auto kernel = rate_kernel<Tile>;
  require_success(allow_shared_memory(kernel, bytes), "shared memory");
  const double seconds = seconds_of(
      [&] { DDN_LAUNCH_SHARED(kernel, static_cast<unsigned>(blocks_each * multiprocessors), 128, bytes, nullptr, p); });
  return 2.0 * 64 * Tile::kPixels * 32 * 9 * p.rounds * blocks_each * multiprocessors / seconds * 1e-12;
}

struct Rates {
  const char* tile;
  double aligned[2], taps[2];  // TFLOP/s with one block a multiprocessor, and with two
};

template <Conv3x3TileKind KIND>
Rates rates_of(const char* name, int multiprocessors) {
  using Tile = Conv3x3WgmmaTile<BFloat16, KIND>;
  Rates rates{name, {}, {}};
  for (int blocks = 1; blocks <= 2; ++blocks) {
    rates.aligned[blocks - 1] = rate_of<Tile>(true, blocks, multiprocessors);
    rates.taps[blocks - 1] = rate_of<Tile>(false, blocks, multiprocessors);
  }
  return rates;
}

// TB/s.
inline double copy_rate(int multiprocessors) {
  RingLaunch p{};
  p.rounds = 4000, p.period = 512 * 512 * 9 / 2 / kRingWords;
  const DeviceArray<uint32_t> from(static_cast<size_t>(p.period) * kRingWords), sums(128 * 12);
  p.from = from.at(), p.sums = sums.at();
  const unsigned blocks = static_cast<unsigned>(2 * multiprocessors);
  const double seconds = seconds_of([&] { DDN_LAUNCH_SHARED(ring_kernel, blocks, 256, kRingBytes, nullptr, p); });
  return static_cast<double>(p.rounds) * kRingWords * 4 * blocks / seconds * 1e-12;
}

inline std::vector<Rates> measure_rates() {
  int count = 0;
  require_success(multiprocessors(count), "multiprocessors");
  std::printf("bulk copies from the second-level cache, two blocks a multiprocessor: %.2f TB/s\n", copy_rate(count));
  const std::vector<Rates> all = {rates_of<Conv3x3TileKind::tall>("tall (2 of 160 columns)", count),
                                  rates_of<Conv3x3TileKind::wide>("wide (5 of 64 columns)", count),
                                  rates_of<Conv3x3TileKind::compact>("compact (3 of 80 columns)", count)};
  std::printf("%-28s%32s%32s\n", "products alone, TFLOP/s", "aligned, 1 and 2 blocks", "as taps lie, 1 and 2 blocks");
  for (const Rates& r : all)
    std::printf("%-28s%24.0f%8.0f%24.0f%8.0f\n", r.tile, r.aligned[0], r.aligned[1], r.taps[0], r.taps[1]);
  std::fflush(stdout);
  return all;
}

}  // namespace ddn::probe
