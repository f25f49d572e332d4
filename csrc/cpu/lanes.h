// The compiler's own vector types, one SSE2 or NEON register wide. Spelled out because loops that mix element widths,
// as values and switches do, are left scalar by the auto-vectoriser. Not wider: gcc 12 takes comparisons of vectors
// wider than a register apart lane by lane, which is accepted for float64 alone, where 4 lanes must fill a byte of
// switches.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "switches.h"

namespace ddn::cpu {

static_assert(std::endian::native == std::endian::little, "pack4 takes the first channel from the lowest byte");

template <class E>
constexpr int kLanes = sizeof(E) == 2 ? 8 : 4;

template <class E, int Count>
struct VectorOf {
  typedef E type [[gnu::vector_size(Count * sizeof(E))]];
};
template <class E>
using Lanes = typename VectorOf<E, kLanes<E>>::type;

// The first `count` of kLanes values, the rest 0. Full vectors pass a constant and become plain moves.
template <class E>
[[gnu::always_inline]] inline Lanes<E> load(const E* at, int count) {
  Lanes<E> v{};
  std::memcpy(&v, at, count * sizeof(E));
  return v;
}

template <class E>
[[gnu::always_inline]] inline void store(E* at, Lanes<E> v, int count) {
  std::memcpy(at, &v, count * sizeof(E));
}

// The switches of `count` channels as positions 0..3, one a lane.
template <class E>
[[gnu::always_inline]] inline Lanes<E> load_positions(const uint8_t* switches, int count) {
  typename VectorOf<uint8_t, kLanes<E>>::type bytes{};
  for (int k = 0; k < count; k += 4) {
    const uint32_t four = unpack4(switches[k / 4]);
    std::memcpy(reinterpret_cast<uint8_t*>(&bytes) + k, &four, sizeof four);
  }
  return __builtin_convertvector(bytes, Lanes<E>);
}

// The reverse. Lanes from `count` on must be 0.
template <class E>
[[gnu::always_inline]] inline void store_positions(uint8_t* switches, Lanes<E> positions, int count) {
  const auto bytes = __builtin_convertvector(positions, typename VectorOf<uint8_t, kLanes<E>>::type);
  for (int k = 0; k < count; k += 4) {
    uint32_t four;
    std::memcpy(&four, reinterpret_cast<const uint8_t*>(&bytes) + k, sizeof four);
    switches[k / 4] = pack4(four);
  }
}

// Calls step(c, count) for all channels, kLanes<E> at a time. `step` is inlined twice: for full vectors, for the tail.
template <class E, class Step>
[[gnu::always_inline]] inline void each_vector(int64_t channels, Step step) {
  int64_t c = 0;
  for (; c + kLanes<E> <= channels; c += kLanes<E>) step(c, kLanes<E>);
  if (c < channels) step(c, static_cast<int>(channels - c));
}

}  // namespace ddn::cpu
