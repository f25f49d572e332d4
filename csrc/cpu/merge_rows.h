// merge_scores: label map of one image from its passes (SPEC section 7.3): sigmoid, normalisation, bicubic resize to
// the padded square, crop, arg max, in one way through the rows of the result. Each row of scores that the filter
// reaches is computed and resized across once, and kept in a ring of as many rows as the filter spans; from those come
// a row's scores and labels. Memory: planes * (side + ring * width), never a plane of the map. Threads: rows of the
// result, those at a border between two threads computed by both. Loops are plain, for the compiler to vectorise.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/merge_scores.h"
#include "cpu/scratch.h"

namespace ddn::cpu {
namespace {

#define DDN_RESTRICT __restrict__

// e^x to 2 units in the last place; infinity where it overflows, so that the sigmoid below ends in an exact 0, as
// torch's does, which the rule for all-zero scores asks for. NaN stays NaN.
[[gnu::always_inline]] inline float exponential(float x) {
  constexpr float kLog2E = 1.44269504f, kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer below
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const float rounded = x * kLog2E + kRound, n = rounded - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in few bits
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // times 2^n in two steps, since n = 128 and n < -126 have no single factor; NaN takes any
  int32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  const int32_t whole = static_cast<int32_t>(static_cast<uint32_t>(bits) << 9) >> 9;  // n, from the low 23 bits
  const int32_t half = whole >> 1;
  const int32_t first = static_cast<int32_t>(static_cast<uint32_t>(half + 127) << 23);
  const int32_t second = static_cast<int32_t>(static_cast<uint32_t>(whole - half + 127) << 23);
  float low, high;
  std::memcpy(&low, &first, sizeof low);
  std::memcpy(&high, &second, sizeof high);
  return p * low * high;
}
[[gnu::always_inline]] inline double exponential(double x) {
  return __builtin_exp(x);
}

template <class T>
struct Merge {
  const MergeScoresParams& p;
  const Taps& taps;
  int64_t planes;        // K + 1
  int64_t padded;        // planes, in whole vectors of four
  int64_t ring;          // rows
  T* score = nullptr;    // [planes][side]
  T* total = nullptr;    // [side]
  T* across = nullptr;   // [side][padded]
  T* resized = nullptr;  // [ring][padded][width]
  T* best = nullptr;     // [width]
  T* value = nullptr;    // [width]
  T* names = nullptr;    // [width], labels so far

  using Name = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // as wide as T, for vectors of both
  typedef T Four [[gnu::vector_size(4 * sizeof(T))]];

  const int64_t* indices(int64_t output) const {
    return taps.index + output * taps.count;
  }
  const T* weights(int64_t output) const {
    return static_cast<const T*>(taps.weight) + output * taps.count;
  }

  // The scores of source row y, summing to 1 at every pixel: where all are exactly 0, equal shares.
  void scores(int64_t y) const {
    const T* difference = static_cast<const T*>(p.difference) + y * p.side;
    const int64_t plane = p.side * p.side, skip = p.classes == 1 ? 0 : 1;  // one pass is both background and class
    T* DDN_RESTRICT sums = total;
    for (int64_t x = 0; x < p.side; ++x) sums[x] = 0;
    for (int64_t k = 0; k < planes; ++k) {
      const T* d = difference + (k == 0 ? 0 : k - 1 + skip) * plane;
      const T sign = k == 0 ? T(1) : T(-1);
      T* DDN_RESTRICT s = score + k * p.side;
      for (int64_t x = 0; x < p.side; ++x) {
        s[x] = T(1) / (T(1) + exponential(sign * d[x]));
        sums[x] += s[x];
      }
    }
    for (int64_t k = 0; k < planes; ++k) {
      T* DDN_RESTRICT s = score + k * p.side;
      for (int64_t x = 0; x < p.side; ++x) {
        const bool nothing = sums[x] <= 0;
        const T share = nothing ? T(1) : s[x], whole = nothing ? static_cast<T>(planes) : sums[x];
        s[x] = share / whole;
      }
      for (int64_t x = 0; x < p.side; ++x) across[x * padded + k] = s[x];
    }
  }

  // Resizes them across, into the ring. Four planes are a vector.
  void resize_row(int64_t y) const {
    T* to = resized + y % ring * padded * p.width;
    for (int64_t x = 0; x < p.width; ++x) {
      const int64_t* index = indices(x);
      const T* weight = weights(x);
      for (int64_t k = 0; k < planes; k += 4) {
        Four sum = {};
        for (int64_t t = 0; t < taps.count; ++t) {
          Four from;
          std::memcpy(&from, across + index[t] * padded + k, sizeof from);
          sum += weight[t] * from;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) to[(k + i) * p.width + x] = sum[i];
      }
    }
  }

  // Labels of row y of the result: the first of the largest scores. NaN is in all planes, as in their sum: background.
  void labels(int64_t y) const {
    const int64_t* index = indices(y);
    const T* weight = weights(y);
    uint8_t* DDN_RESTRICT label = p.y + y * p.width;
    T* DDN_RESTRICT most = best;
    T* DDN_RESTRICT v = value;
    Name* DDN_RESTRICT name = reinterpret_cast<Name*>(names);
    for (int64_t k = 0; k < planes; ++k) {
      for (int64_t t = 0; t < taps.count; ++t) {
        const T* DDN_RESTRICT from = resized + (index[t] % ring * padded + k) * p.width;
        const T w = weight[t];
        if (t == 0)
          for (int64_t x = 0; x < p.width; ++x) v[x] = w * from[x];
        else
          for (int64_t x = 0; x < p.width; ++x) v[x] += w * from[x];
      }
      for (int64_t x = 0; x < p.width; ++x) {
        const bool above = (v[x] > most[x]) | (k == 0);
        name[x] = above ? static_cast<Name>(k) : name[x];
        most[x] = above ? v[x] : most[x];
      }
    }
    for (int64_t x = 0; x < p.width; ++x) label[x] = static_cast<uint8_t>(name[x]);
  }
};

// The source rows that rows [begin, end) of the result need, from `first` on, and how many of them must be kept. The
// filter is mirrored at the edges, so what a row reaches neither ascends nor follows on the row before.
struct Reach {
  int64_t first, rows;
};
Reach reach_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end) {
  Reach reach{p.side, 1};
  int64_t last = 0;  // so far
  for (int64_t y = begin; y < end; ++y) {
    const int64_t* index = taps.index + y * taps.count;
    int64_t nearest = p.side;
    for (int64_t t = 0; t < taps.count; ++t) {
      last = index[t] > last ? index[t] : last;
      nearest = index[t] < nearest ? index[t] : nearest;
    }
    reach.first = nearest < reach.first ? nearest : reach.first;
    reach.rows = last - nearest + 1 > reach.rows ? last - nearest + 1 : reach.rows;
  }
  return reach;
}

template <class T>
void merge_rows(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const Reach reach = reach_of(p, taps, begin, end);
  Merge<T> m{.p = p, .taps = taps, .planes = p.classes + 1, .padded = (p.classes + 4) / 4 * 4, .ring = reach.rows};
  const int64_t sizes[] = {m.planes * p.side, p.side, p.side * m.padded, m.ring * m.padded * p.width, p.width,
                           p.width,           p.width};
  T** places[] = {&m.score, &m.total, &m.across, &m.resized, &m.best, &m.value, &m.names};
  int64_t elements = 0;
  for (const int64_t size : sizes) elements += (size + 15) / 16 * 16;
  T* next = static_cast<T*>(scratch(Scratch::worker, static_cast<size_t>(elements) * sizeof(T)));
  for (int i = 0; i < 7; ++i) {
    *places[i] = next;
    next += (sizes[i] + 15) / 16 * 16;
  }
  std::memset(m.across, 0, static_cast<size_t>(p.side * m.padded) * sizeof(T));

  int64_t done = reach.first;  // the source rows before it were computed, as far as needed
  for (int64_t y = begin; y < end; ++y) {
    for (int64_t t = 0; t < taps.count; ++t)
      for (; done <= taps.index[y * taps.count + t]; ++done) {
        m.scores(done);
        m.resize_row(done);
      }
    m.labels(y);
  }
}

}  // namespace
}  // namespace ddn::cpu
