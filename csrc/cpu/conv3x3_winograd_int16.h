// conv3x3_winograd.h's algorithm with products of 16-bit integers: exact, from half the memory, and at up to twice the
// rate of floats, which AVX512_VNNI and AVX-VNNI reach in one instruction, AVX2 in a product and a sum on CPUs that
// begin two products a cycle. Transformed inputs d and weights g of a point become whole numbers
//
//   D = round(d * 32760 / (bound * largest))      largest: |input| of the tile; bound: |d| at most, for inputs up to 1
//   G = round(g * scale)                          scale of the point and output: ddn_fast/packing.py
//
// Scales are a tile's own: no result depends on its neighbours in a batch. Sums over two blocks of inputs stay below
// 2^31, for |D| <= 2^15 and weights are packed so that their |G| sum to less than 2^16; such sums are added up in
// float. A tile that holds a NaN gives NaN, one with an infinity nothing of use.
#pragma once
#include "cpu/conv3x3_winograd.h"

namespace ddn::cpu {
namespace {

typedef int32_t IVec [[gnu::vector_size(4 * kWidth)]];

DDN_INLINE UVec largest_of(UVec a, UVec b) {
#if defined(__AVX512F__)
  return (UVec)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (UVec)_mm256_max_epu32((__m256i)a, (__m256i)b);
#else
  return a > b ? a : b;
#endif
}

// total + a * b, of neighbouring pairs of 16-bit integers.
DDN_INLINE IVec dot_pairs(IVec total, IVec a, IVec b) {
#if defined(__AVX512VNNI__)
  return (IVec)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return total + (IVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
  return (IVec)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
  return total + (IVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return total + (IVec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return total + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// To the nearest whole number, ties to even, at most 32767 either way or 32768 below.
DDN_INLINE void store_int16(int16_t* to, Vec v) {
#if defined(__AVX512F__)
  store_bits(to, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32((__m512)v)));
#elif defined(__AVX2__)
  const __m256i whole = _mm256_cvtps_epi32((__m256)v);
  store_bits(to, _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
#else
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: whole numbers are its unit in the last place
  const Vec whole = v + round - round;
  for (int k = 0; k < kWidth; ++k)
    to[k] = static_cast<int16_t>(whole[k] > 32767 ? 32767 : whole[k] >= -32768 ? whole[k] : -32768);  // NaN, too
#endif
}

struct Int16Numbers {
  using Element = int16_t;
  static constexpr int64_t kRow = 2 * kBlock;             // a pair of inputs, of 32 outputs
  static constexpr int64_t kWeights = kBlock / 2 * kRow;  // of a point and a block of inputs

  // Rows of a point's kernel: pairs of inputs, then the 32 outputs' scales in float.
  static constexpr int64_t kernel_elements(int64_t in_blocks) {
    return in_blocks * kWeights + kRow;
  }

  static constexpr int64_t kTogether = 2;  // blocks of inputs multiplied at once, their products added up as integers

  struct TileScale {
    float largest;
  };

  static TileScale scale(const Rows<float>& in, int64_t in_blocks, const Part& part) {
    const float* from = in.data + part.in;
    const int64_t row = in.pitch * kBlock;
    const uint32_t bits = part.in_columns == 6
                              ? largest_bits(from, in.plane, in_blocks, row, part.in_rows, 6)
                              : largest_bits(from, in.plane, in_blocks, row, part.in_rows, part.in_columns);
    TileScale found;
    std::memcpy(&found.largest, &bits, sizeof bits);
    return found;
  }

  struct Points {
    int16_t* to;
    int64_t point;
    float factor[kPoints];

    Points(int16_t* to, int64_t point, TileScale scale) : to(to), point(point) {
      // one by |B^T d| of a row at most, for |d| <= 1
      constexpr float part[6] = {1 / 4.5f,
                                 1 / (3 + 1.5f * kRoot),
                                 1 / (3 + 1.5f * kRoot),
                                 1 / (1.5f + 1.5f * kRoot),
                                 1 / (1.5f + 1.5f * kRoot),
                                 1 / 4.5f};
      const float unit = scale.largest > 1e-30f ? 32760.0f / scale.largest : 0.0f;  // inputs below are none
      for (int k = 0; k < kPoints; ++k) factor[k] = unit * (part[k / 6] * part[k % 6]);
    }
    DDN_INLINE void put(int k, int v, Vec value) const {
      store_int16(to + k * point + v, value * factor[k]);
    }
  };

  // products [tile,32] (+)= points times weights of `blocks` blocks of inputs, `stride` elements between them.
  template <int Count>
  static void multiply(const int16_t* points, int64_t stride, int64_t blocks, const int16_t* weights, float* products,
                       bool add) {
    for (int first = 0; first < kBlock; first += kOutputs) {
      IVec total[Count][2] = {};
      const int16_t* row = weights + 2 * first;
      for (int64_t b = 0; b < blocks; ++b) {
        const int16_t* in = points + b * stride;
#pragma GCC unroll 4
        for (int pair = 0; pair < kBlock / 2; ++pair, row += kRow) {
          const IVec w0 = load_bits<IVec>(row), w1 = load_bits<IVec>(row + 2 * kWidth);
#pragma GCC unroll 12
          for (int n = 0; n < Count; ++n) {
            const IVec two = IVec{} + load_bits<int32_t>(in + n * kBlock + 2 * pair);
            total[n][0] = dot_pairs(total[n][0], two, w0);
            total[n][1] = dot_pairs(total[n][1], two, w1);
          }
        }
      }
#pragma GCC unroll 12
      for (int n = 0; n < Count; ++n)
        for (int v = 0; v < 2; ++v) {
          float* at = products + n * kBlock + first + v * kWidth;
          const Vec sum = __builtin_convertvector(total[n][v], Vec);
          store(at, add ? load(at) + sum : sum);
        }
    }
  }

  struct Products {
    const float* from;
    const int16_t* scales;  // of point 0
    int64_t kernel;
    float largest;

    Products(const float* from, const int16_t* weights, int64_t kernel, TileScale scale)
        : from(from), scales(weights + kernel - kRow), kernel(kernel), largest(scale.largest) {
    }
    DDN_INLINE Vec get(int k, int v) const {
      return load(from + k * kProductPoint + v) * load_bits<Vec>(scales + k * kernel + 2 * v);
    }
    DDN_INLINE Vec scaled(Vec value) const {
      return value * largest;
    }
  };

 private:
  // Of magnitudes: their bits are in the order of their values, NaN last.
  static DDN_INLINE uint32_t largest_bits(const float* from, int64_t plane, int64_t blocks, int64_t row, int rows,
                                          int columns) {
    UVec most[4]{};
    for (int64_t b = 0; b < blocks; ++b)
      for (int i = 0; i < rows; ++i) {
        const float* at = from + b * plane + i * row;
#pragma GCC unroll 6
        for (int j = 0; j < columns; ++j)
#pragma GCC unroll 8
          for (int v = 0; v < kBlock / kWidth; ++v) {
            UVec& one = most[(j * 2 + v) % 4];
            one = largest_of(one, (UVec)load(at + j * kBlock + v * kWidth) & 0x7fffffffu);
          }
      }
    const UVec all = largest_of(largest_of(most[0], most[1]), largest_of(most[2], most[3]));
    uint32_t bits = 0;
    for (int k = 0; k < kWidth; ++k) bits = all[k] > bits ? all[k] : bits;
    return bits;
  }
};

}  // namespace
}  // namespace ddn::cpu
