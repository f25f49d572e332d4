// Host back end of cuda/dev.cuh and cuda/warp.cuh: kernels and the code that launches them run under g++ and its
// sanitizers. Threads are fibers (fibers.h, which also says what this finds); what they do to memory is here.
#pragma once
#include <cmath>

#include "emu/fibers.h"

#define DDN_DEVICE inline
#define DDN_GLOBAL static
#define DDN_LAUNCH_BOUNDS(threads, blocks)
#define DDN_UNROLL
#define DDN_NO_UNROLL
#define DDN_SHARED_MEMORY(name) unsigned char* const name = ::ddn::emu::block.shared

struct uint4 {
  uint32_t x, y, z, w;
};
using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

#define DDN_LAUNCH(kernel, blocks, threads, stream, params) \
  ((void)(stream), ::ddn::emu::launch(kernel, dim3{static_cast<unsigned>(blocks)}, threads, 0, params))
#define DDN_LAUNCH_SHARED(kernel, grid, threads, shared_bytes, stream, params) \
  ((void)(stream), ::ddn::emu::launch(kernel, grid, threads, shared_bytes, params))

namespace ddn {

namespace emu {
inline void require_aligned(const void* at, size_t bytes = 16) {
  if (reinterpret_cast<uintptr_t>(at) % bytes) die("wide access off its boundary");
}
template <class T>
T read(const void* at) {
  require_aligned(at, sizeof(T));
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <class T>
void write(void* at, T value) {
  require_aligned(at, sizeof(T));
  std::memcpy(at, &value, sizeof value);
}
}  // namespace emu

// --- dev.cuh ---

inline uint4 load16(const void* at) {
  return emu::read<uint4>(at);
}
inline uint4 load16_shared_by_blocks(const void* at) {
  return emu::read<uint4>(at);
}
inline void store16(void* at, uint4 value) {
  emu::write(at, value);
}
inline void store4(void* at, uint32_t value) {
  emu::write(at, value);
}
inline void require(bool holds) {
  if (!holds) emu::die("contract violated");
}
inline float exponential(float x) {
  return __builtin_expf(x);
}
inline double exponential(double x) {
  return __builtin_exp(x);
}

template <class Kernel>
cudaError_t allow_shared_memory(Kernel, int) {
  return cudaSuccess;
}
inline cudaError_t compute_capability(int& major, int& minor) {
  major = emu::options.capability / 10, minor = emu::options.capability % 10;
  return cudaSuccess;
}
inline cudaError_t multiprocessors(int& count) {
  count = emu::options.multiprocessors;
  return cudaSuccess;
}
inline cudaError_t set_zero(void* at, size_t bytes, cudaStream_t) {
  std::memset(at, 0, bytes);
  return cudaSuccess;
}

// --- warp.cuh ---

using Shared = unsigned char*;

inline Shared shared_address(unsigned char* at) {
  return at;
}
inline void synchronize_block() {
  emu::barrier();
}
// What other blocks wrote is there: blocks run one after another.
inline void fence() {
}
inline unsigned add_one(unsigned* at) {
  return (*at)++;
}

inline uint4 load_shared16(Shared at) {
  return emu::read<uint4>(at);
}
inline uint32_t load_shared4(Shared at) {
  return emu::read<uint32_t>(at);
}
inline uint32_t load_shared2(Shared at) {
  return emu::read<uint16_t>(at);
}
inline void store_shared16(Shared at, uint4 value) {
  emu::write(at, value);
  emu::wrote(at, sizeof value);
}
inline void store_shared4(Shared at, uint32_t value) {
  emu::write(at, value);
  emu::wrote(at, sizeof value);
}
inline void store_shared2(Shared at, uint32_t value) {
  emu::write(at, static_cast<uint16_t>(value));
  emu::wrote(at, 2);
}

inline int not_before(int value) {
  return value;
}

template <int BYTES>
void copy_async(Shared to, const void* from, bool wanted) {
  emu::require_aligned(to, BYTES);
  emu::require_aligned(from, BYTES);
  const emu::Copy copy{to, wanted ? from : nullptr, BYTES};
  if (emu::options.eager_copies) {
    copy.land();
    emu::wrote(to, BYTES);
  } else {
    std::memset(to, 0xff, BYTES);
    emu::self().open.push_back(copy);
  }
}
inline void commit_copies() {
  emu::self().groups.push_back(std::move(emu::self().open));
  emu::self().open.clear();
}
template <int PENDING>
void wait_for_copies() {
  auto& groups = emu::self().groups;
  for (; groups.size() > PENDING; groups.pop_front())
    for (const emu::Copy& copy : groups.front()) copy.land(), emu::wrote(copy.to, copy.bytes);
}

inline uint32_t shuffle_xor(uint32_t value, unsigned lanes) {
  uint32_t other = 0;
  const uint32_t in[] = {value, lanes};
  emu::together(1, in, &other, [](const emu::Meeting& warp) {
    for (unsigned lane = 0; lane < emu::kWarp; ++lane) {
      const unsigned from = lane ^ static_cast<const uint32_t*>(warp.in[lane])[1];
      *static_cast<uint32_t*>(warp.out[lane]) = static_cast<const uint32_t*>(warp.in[from])[0];
    }
  });
  return other;
}
inline float shuffle_xor(float value, unsigned lanes) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = shuffle_xor(bits, lanes);
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

inline uint32_t ballot(bool yes) {
  uint32_t all = 0;
  emu::together(4, &yes, &all, [](const emu::Meeting& warp) {
    uint32_t bits = 0;
    for (unsigned lane = 0; lane < emu::kWarp; ++lane)
      bits |= static_cast<uint32_t>(*static_cast<const bool*>(warp.in[lane])) << lane;
    for (unsigned lane = 0; lane < emu::kWarp; ++lane) *static_cast<uint32_t*>(warp.out[lane]) = bits;
  });
  return all;
}
inline int count_bits(uint32_t bits) {
  return __builtin_popcount(bits);
}

inline void load_matrices(uint32_t (&fragment)[4], Shared row) {
  emu::require_aligned(row);
  emu::together(2, row, fragment, [](const emu::Meeting& warp) {
    for (unsigned lane = 0; lane < emu::kWarp; ++lane)
      for (unsigned m = 0; m < 4; ++m)
        std::memcpy(static_cast<uint32_t*>(warp.out[lane]) + m,
                    static_cast<const unsigned char*>(warp.in[8 * m + lane / 4]) + lane % 4 * 4, 4);
  });
}

namespace emu {
template <class T>
float widened(uint16_t bits);
template <>
inline float widened<BFloat16>(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
template <>
inline float widened<Float16>(uint16_t bits) {
  const uint32_t word = (bits & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &word, sizeof value);
  value = word < 0x0f800000 ? value * 0x1p112f : value * 0x1p112f * (word > 0x0f800000 ? NAN : INFINITY);
  return bits & 0x8000 ? -value : value;
}
template <class T>
uint16_t narrowed(float value);
template <>
inline uint16_t narrowed<BFloat16>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <>
inline uint16_t narrowed<Float16>(float value) {
  // by hand, as not every g++ has the type: to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size >= 0x47800000) return static_cast<uint16_t>(sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (size < 0x38800000)  // in units of float16's least value
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::lrint(std::fabs(value) * 0x1p24f)));
  return static_cast<uint16_t>(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}
}  // namespace emu

template <class T>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    const uint32_t* a;
    uint32_t b[2];
  };
  const Operands operands{a, {b0, b1}};
  emu::together(3, &operands, sums, [](const emu::Meeting& warp) {
    float left[16][16], right[8][16];  // rows and columns of the product, each along k
    for (unsigned lane = 0; lane < emu::kWarp; ++lane) {
      const Operands& from = *static_cast<const Operands*>(warp.in[lane]);
      for (unsigned e = 0; e < 2; ++e) {
        const unsigned k = lane % 4 * 2 + e;
        for (unsigned i = 0; i < 4; ++i)
          left[lane / 4 + i % 2 * 8][k + i / 2 * 8] = emu::widened<T>(static_cast<uint16_t>(from.a[i] >> 16 * e));
        for (unsigned i = 0; i < 2; ++i)
          right[lane / 4][k + 8 * i] = emu::widened<T>(static_cast<uint16_t>(from.b[i] >> 16 * e));
      }
    }
    for (unsigned lane = 0; lane < emu::kWarp; ++lane)
      for (unsigned i = 0; i < 4; ++i) {
        float sum = 0;
        for (unsigned k = 0; k < 16; ++k) sum += left[lane / 4 + i / 2 * 8][k] * right[lane % 4 * 2 + i % 2][k];
        static_cast<float*>(warp.out[lane])[i] += sum;
      }
  });
}

template <class T>
uint32_t narrow_two(float low, float high) {
  return emu::narrowed<T>(low) | static_cast<uint32_t>(emu::narrowed<T>(high)) << 16;
}

template <class T>
float widen(uint16_t bits) {
  return emu::widened<T>(bits);
}

}  // namespace ddn
