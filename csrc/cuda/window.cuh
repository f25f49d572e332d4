// What the three 2x2 kernels share: how a thread finds its place, and how it moves N channels and their switches.
//
// Thread map: one thread per (pooled row, pooled column, N channels), channels fastest, so that neighbouring threads
// touch neighbouring addresses. N = 8 with 16-byte accesses where C % 8 == 0 and every pointer allows it, else N = 4
// (one byte of switches) with element accesses and a guarded tail.
#pragma once
#include <cstring>

#include "cuda/dev.cuh"
#include "params.h"
#include "switches.h"

namespace ddn {

constexpr int kThreads = 256;

// Thread `item` of one kernel. 64-bit divisions take nvcc's short path while the values fit in 32 bits.
struct Place {
  int64_t map;      // image or pass
  int64_t i, j;     // pooled row, pooled column
  int64_t channel;  // first of N
};

template <int N>
DDN_DEVICE Place place_of(int64_t item, int64_t rows, int64_t columns, int64_t channels) {
  const int64_t groups = (channels + N - 1) / N;
  Place at;
  at.channel = item % groups * N;
  item /= groups;
  at.j = item % columns;
  item /= columns;
  at.i = item % rows;
  at.map = item / rows;
  return at;
}

template <int N>
inline int64_t items(int64_t maps, int64_t height, int64_t width, int64_t channels) {
  return maps * half_up(height) * half_up(width) * ((channels + N - 1) / N);
}

DDN_DEVICE int64_t this_item() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Channels at[0..N-1], or the first `count` of them.
template <int N, class T>
DDN_DEVICE void load_channels(T (&value)[N], const T* at, int count) {
  if constexpr (N == 8) {
    DDN_UNROLL
    for (int k = 0; k < N; k += 16 / static_cast<int>(sizeof(T))) {
      const uint4 bits = load16(at + k);
      memcpy(value + k, &bits, sizeof bits);
    }
  } else {
    DDN_UNROLL
    for (int k = 0; k < N; ++k) value[k] = k < count ? at[k] : T{};
  }
}

template <int N, class T>
DDN_DEVICE void store_channels(T* at, const T (&value)[N], int count) {
  if constexpr (N == 8) {
    DDN_UNROLL
    for (int k = 0; k < N; k += 16 / static_cast<int>(sizeof(T))) {
      uint4 bits;
      memcpy(&bits, value + k, sizeof bits);
      store16(at + k, bits);
    }
  } else {
    DDN_UNROLL
    for (int k = 0; k < N; ++k)
      if (k < count) at[k] = value[k];
  }
}

// The switches of N channels as one number, channel k in bits 2k and 2k+1.
template <int N>
DDN_DEVICE uint32_t load_switches(const uint8_t* at) {
  if constexpr (N == 8) return *reinterpret_cast<const uint16_t*>(at);
  return *at;
}

template <int N>
DDN_DEVICE void store_switches(uint8_t* at, uint32_t packed) {
  if constexpr (N == 8)
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(packed);
  else
    *at = static_cast<uint8_t>(packed);
}

template <class Params>
DDN_DEVICE int64_t image_of(const Params& p, int64_t pass) {
  const int64_t image = p.image_of_pass ? p.image_of_pass[pass] : pass;
  require(image >= 0 && image < p.images);
  return image;
}

// Whether 16-byte accesses are allowed throughout.
template <class Params>
inline bool is_wide(const Params& p) {
  const auto aligned = [](const void* at, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; };
  return p.channels % 8 == 0 && aligned(p.x, 16) && aligned(p.y, 16) && aligned(p.switches, 2);
}

// One thread per item. An empty launch is no launch; a grid too long for the hardware is an error, not a wrap-around.
template <class Params>
inline int launch(void (*kernel)(Params), const Params& p, int64_t item_count, cudaStream_t stream) {
  if (item_count == 0) return cudaSuccess;
  const int64_t blocks = (item_count + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  DDN_LAUNCH(kernel, static_cast<unsigned>(blocks), kThreads, stream, p);
  return cudaGetLastError();
}

}  // namespace ddn
