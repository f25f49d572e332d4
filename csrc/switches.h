// The 2-bit switch (SPEC identity 7), for host and device: which of a 2x2 window's four places won, 2*dy + dx.
// Channel c sits in bits 2*(c%4) of byte c/4; unused bits of the last byte are zero.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace ddn {

DDN_HOST_DEVICE int64_t switch_bytes(int64_t channels) {
  return channels / 4 + (channels % 4 != 0);
}

// Four positions 0..3, one per byte of `four` (lowest byte first), to one byte of switches.
DDN_HOST_DEVICE uint8_t pack4(uint32_t four) {
  return static_cast<uint8_t>(four * 0x01041040u >> 24);  // byte k lands at bit 24 + 2k; the fields never overlap
}

// The reverse: a byte of switches to four positions, one per byte.
DDN_HOST_DEVICE uint32_t unpack4(uint8_t packed) {
  const uint32_t s = packed;
  return (s | s << 6 | s << 12 | s << 18) & 0x03030303u;
}

// 16-bit floats are carried as bits and compared as integers: no conversion instruction is needed anywhere.
struct BFloat16 {
  static constexpr int16_t infinity = 0x7f80;
  int16_t bits;
};
struct Float16 {
  static constexpr int16_t infinity = 0x7c00;
  int16_t bits;
};

// How max pooling orders values. `beats(challenger, holder)` on keys is torch.max_pool2d's rule: strictly greater, or
// NaN; so the first of equals holds (-0 equals +0), and the last NaN. V is a Value, or a vector of them on the CPU.
template <class T>
struct Order {
  using Value = T;
  template <class V>
  static DDN_HOST_DEVICE V key(V value) {
    return value;
  }
  template <class V>
  static DDN_HOST_DEVICE auto beats(V challenger, V holder) {
    return (challenger > holder) | (challenger != challenger);
  }
};

template <class T>
struct Order16 {
  using Value = int16_t;
  static constexpr int16_t nan = 0x7fff;  // above every number's key
  template <class V>
  static DDN_HOST_DEVICE V key(V bits) {
    const V magnitude = static_cast<V>(bits & int16_t{0x7fff});
    const V number = bits < 0 ? static_cast<V>(-magnitude) : magnitude;
    return magnitude > T::infinity ? static_cast<V>(V{} + nan) : number;
  }
  template <class V>
  static DDN_HOST_DEVICE auto beats(V challenger, V holder) {
    return (challenger > holder) | (challenger == nan);
  }
};
template <>
struct Order<BFloat16> : Order16<BFloat16> {};
template <>
struct Order<Float16> : Order16<Float16> {};

}  // namespace ddn
