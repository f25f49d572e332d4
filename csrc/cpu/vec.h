// One register of floats of the instruction set this translation unit is compiled for. Everything has internal linkage:
// each kernel file keeps its own copy, compiled with its own flags.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define DDN_INLINE __attribute__((always_inline)) inline

namespace ddn::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec [[gnu::vector_size(4 * kWidth)]];
typedef uint32_t UVec [[gnu::vector_size(4 * kWidth)]];
typedef uint16_t HalfVec [[gnu::vector_size(2 * kWidth)]];  // the bits of kWidth bfloat16 or float16

struct BF16 {
  uint16_t bits;
};
struct FP16 {  // written, never read: the CPU computes in no float16
  uint16_t bits;
};

DDN_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class V>
DDN_INLINE V load_bits(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
DDN_INLINE void store_bits(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

DDN_INLINE Vec splat(float value) {
  return value - Vec{};  // x - 0 is x, so only a broadcast remains; x + 0 is not, for -0
}

// kWidth values of either type, widened to float.
DDN_INLINE Vec load(const float* from) {
  return load_bits<Vec>(from);
}
DDN_INLINE Vec load(const BF16* from) {
  return (Vec)(__builtin_convertvector(load_bits<HalfVec>(from), UVec) << 16);
}

DDN_INLINE void store(float* to, Vec v) {
  store_bits(to, v);
}
// To the nearest, ties to even; NaN stays NaN.
DDN_INLINE void store(BF16* to, Vec v) {
#if defined(__AVX512BF16__)
  store_bits(to, (HalfVec)_mm512_cvtneps_pbh((__m512)v));
#else
  const UVec bits = (UVec)v;
  const UVec rounded = bits + 0x7fff + (bits >> 16 & 1);
  const UVec kept = v != v ? (bits | 0x400000) : rounded;
  store_bits(to, __builtin_convertvector(kept >> 16, HalfVec));
#endif
}

// To the nearest, ties to even; what is too large becomes infinite, NaN stays NaN.
DDN_INLINE void store(FP16* to, Vec v) {
#if defined(__AVX512F__)
  store_bits(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const UVec bits = (UVec)v, sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  const UVec normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;  // its exponent's bias is 112 less
  const UVec small = (UVec)((Vec)size + splat(0.5f)) - 0x3f000000;  // 0.5's last place is float16's least value
  const UVec large = size > 0x7f800000 ? (size >> 13 & 0x3ff) | 0x7e00 : UVec{} + 0x7c00;
  const UVec magnitude = size < 0x38800000 ? small : size < 0x47800000 ? normal : large;
  store_bits(to, __builtin_convertvector(magnitude | sign, HalfVec));
#endif
}

// The first `count` values, the rest 0; and their reverse. For the last channels of a map.
#if defined(__AVX512VL__) && defined(__AVX512BW__)
DDN_INLINE __mmask16 lanes_below(int count) {
  return static_cast<__mmask16>(count <= 0 ? 0 : (1u << count) - 1);
}
DDN_INLINE Vec load_some(const float* from, int count) {
  return count >= kWidth ? load(from) : (Vec)_mm512_maskz_loadu_ps(lanes_below(count), from);
}
DDN_INLINE Vec load_some(const BF16* from, int count) {
  if (count >= kWidth) return load(from);
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes_below(count), from)), 16);
}
DDN_INLINE void store_some(float* to, Vec v, int count) {
  count >= kWidth ? store(to, v) : _mm512_mask_storeu_ps(to, lanes_below(count), (__m512)v);
}
template <class E>  // BF16, FP16
DDN_INLINE void store_some(E* to, Vec v, int count) {
  if (count >= kWidth) return store(to, v);
  E padded[kWidth];
  store(padded, v);
  _mm256_mask_storeu_epi16(to, lanes_below(count), load_bits<__m256i>(padded));
}
#else
template <class E>
DDN_INLINE Vec load_some(const E* from, int count) {
  if (count >= kWidth) return load(from);
  E padded[kWidth] = {};
  for (int k = 0; k < count; ++k) padded[k] = from[k];
  return load(padded);
}
template <class E>
DDN_INLINE void store_some(E* to, Vec v, int count) {
  if (count >= kWidth) return store(to, v);
  E padded[kWidth];
  store(padded, v);
  for (int k = 0; k < count; ++k) to[k] = padded[k];
}
#endif

// max(v, 0) that keeps NaN, as torch's does: the instruction returns its second operand when either is NaN.
DDN_INLINE Vec relu(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps(_mm512_setzero_ps(), (__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps(_mm256_setzero_ps(), (__m256)v);
#elif defined(__SSE2__)
  return (Vec)_mm_max_ps(_mm_setzero_ps(), (__m128)v);
#else
  return v < 0 ? Vec{} : v;
#endif
}

DDN_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int k = 0; k < kWidth; ++k) total += v[k];
  return total;
#endif
}

}  // namespace
}  // namespace ddn::cpu
