// Where a tile's input channels are shared out among blocks: each leaves its sums, the last to do so adds them up, in
// the order of the slices, so that every bit of the result depends on the shapes alone.
#pragma once
#include <cstring>

#include "cuda/conv3x3_tile.cuh"

namespace ddn {

// Of THREADS threads, each with FOURS * 4 sums, four(k) pointing to the k-th four of them: leaves them, and in the last
// slice to arrive replaces them by the sums over all slices and returns true. AT_ONCE fours are loaded at a time: more
// would not fit the registers. Ends with shared memory free.
template <int FOURS, int AT_ONCE, int THREADS, class Four, class Synchronize>
DDN_DEVICE bool gather_slices(const Conv3x3Launch& p, const Four& four, Shared memory, int thread,
                              const Synchronize& synchronize) {
  const int64_t tile = blockIdx.x;
  float* const first = p.sums + (tile * p.slices * FOURS * THREADS + thread) * 4;
  const int64_t slice = static_cast<int64_t>(FOURS) * THREADS * 4;
  DDN_UNROLL
  for (int k = 0; k < FOURS; ++k) {
    uint4 bits;
    memcpy(&bits, four(k), sizeof bits);
    store16(first + blockIdx.z * slice + k * THREADS * 4, bits);
  }
  fence();
  synchronize();
  if (thread == 0) store_shared4(memory, add_one(p.arrived + tile));
  synchronize();
  const bool last = load_shared4(memory) == static_cast<uint32_t>(p.slices - 1);
  synchronize();  // `memory` is the score's next
  if (!last) return false;
  fence();
  DDN_UNROLL
  for (int begin = 0; begin < FOURS; begin += AT_ONCE) {
    const int end = begin + AT_ONCE < FOURS ? begin + AT_ONCE : FOURS;
    DDN_UNROLL
    for (int k = begin; k < end; ++k) memset(four(k), 0, 16);
    DDN_NO_UNROLL
    for (int s = 0; s < p.slices; ++s) {
      DDN_UNROLL
      for (int k = begin; k < end; ++k) {
        const uint4 bits = load16_shared_by_blocks(first + s * slice + k * THREADS * 4);
        float share[4];
        memcpy(share, &bits, sizeof bits);
        DDN_UNROLL
        for (int i = 0; i < 4; ++i) four(k)[i] += share[i];
      }
    }
  }
  return true;
}

}  // namespace ddn
