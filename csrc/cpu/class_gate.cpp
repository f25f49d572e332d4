// class_gate: the class-specific activation map of (image, label) pairs (SPEC section 4), each as the 7x7 window that
// is not zero (identity 1), as two products of a vector and a matrix:
//   g7 = cls_weight[label] where fc7 > 0;  g6 = g7 @ fc7_weight where fc6 > 0;  y = g6 @ fc6_weight.
// Only rows of weights that are on, that is where g7 or g6 is not 0, are read (identity 10), and once for up to four
// pairs, over the union of their rows. Bound by reading those. Sums and gates: float32, in the order of the rows,
// whatever the grouping and the threads.
#include "cpu/class_gate.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/class_gate_rows.h"
#include "cpu/scratch.h"
#include "cpu/variants.h"

namespace ddn::cpu {

namespace plain {
void row_sums(const GateSums& sums, int64_t begin, int64_t end) {
  sum_rows(sums, begin, end);
}
}  // namespace plain

namespace {

constexpr int64_t kPairs = 64;  // at a time, which bounds the memory
constexpr int64_t kBlock = 32;  // columns: whole cache lines of either dtype

float value(const void* from, Dtype dtype, int64_t at) {
  if (dtype == Dtype::float32) return static_cast<const float*>(from)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(from)[at]) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

using GateSumsKernel = void (*)(const GateSums&, int64_t, int64_t);

GateSumsKernel best_row_sums() {
  static constexpr Variant<GateSumsKernel> variants[] = {
      {Isa::plain, plain::row_sums},
      {Isa::avx2, DDN_AVX2(avx2::row_sums)},
      {Isa::avx512, DDN_AVX512(avx512::row_sums)},
  };
  return best_variant(variants, isa());
}

// Some of the pairs, in groups that read rows of weights together.
class Groups {
 public:
  Groups(const ClassGateParams& p, const int64_t* pairs, int64_t count)
      : p_(p), pairs_(pairs), count_(count), kernel_(best_row_sums()) {
    const int64_t floats = size() * kGateTogether * p.features;
    const int64_t bytes = size() * (p.features + 1) * static_cast<int64_t>(sizeof(int64_t)) +
                          2 * floats * static_cast<int64_t>(sizeof(float));
    on_ = static_cast<int64_t*>(scratch(Scratch::shared, static_cast<size_t>(bytes)));
    on_count_ = on_ + size() * p.features;
    scale_ = reinterpret_cast<float*>(on_count_ + size());
    sum_ = scale_ + floats;
  }

  void run(const Parallel& parallel) {
    const auto share = [&](int64_t units, auto step) {
      parallel(units, [&](int64_t begin, int64_t end) { step(begin, end); });
    };
    const auto blocks = [](int64_t columns) { return (columns + kBlock - 1) / kBlock; };
    share(size(), [&](int64_t begin, int64_t end) {
      gate(begin, end, p_.fc7, p_.fc7_dtype, [&](int64_t group, int q, int64_t f) {
        return value(p_.cls_weight, p_.cls_dtype, p_.label[pair_at(group, q)] * p_.features + f);
      });
    });
    share(blocks(p_.features), [&](int64_t begin, int64_t end) {
      product(begin, end, p_.fc7_weight, p_.features, [&](int64_t group, int q) { return sum_of(group, q); });
    });
    share(size(), [&](int64_t begin, int64_t end) {
      gate(begin, end, p_.fc6, p_.fc6_dtype, [&](int64_t group, int q, int64_t f) { return sum_of(group, q)[f]; });
    });
    share(blocks(p_.inputs), [&](int64_t begin, int64_t end) {
      product(begin, end, p_.fc6_weight, p_.inputs,
              [&](int64_t group, int q) { return p_.y + pair_at(group, q) * p_.inputs; });
    });
  }

 private:
  int64_t size() const {
    return (count_ + kGateTogether - 1) / kGateTogether;
  }
  int pairs_in(int64_t group) const {
    return static_cast<int>(std::min<int64_t>(kGateTogether, count_ - group * kGateTogether));
  }
  int64_t pair_at(int64_t group, int q) const {
    return pairs_[group * kGateTogether + q];
  }
  float* sum_of(int64_t group, int q) const {
    return sum_ + (group * kGateTogether + q) * p_.features;
  }

  // g = of(group, q, f) where the activation at pair q's place is > 0; notes the rows where any pair's is not 0.
  template <class Of>
  void gate(int64_t begin, int64_t end, const void* activation, Dtype dtype, Of of) {
    for (int64_t group = begin; group < end; ++group) {
      const int pairs = pairs_in(group);
      int64_t at[kGateTogether] = {};
      for (int q = 0; q < pairs; ++q) {
        const int64_t pair = pair_at(group, q), image = p_.image[pair];
        at[q] = (image * p_.places + p_.position[image * p_.labels + p_.label[pair]]) * p_.features;
      }
      int64_t* on = on_ + group * p_.features;
      float* scales = scale_ + group * kGateTogether * p_.features;
      int64_t count = 0;
      for (int64_t f = 0; f < p_.features; ++f) {
        float* scale = scales + count * kGateTogether;
        bool any = false;
        for (int q = 0; q < kGateTogether; ++q) {
          scale[q] = q < pairs && value(activation, dtype, at[q] + f) > 0 ? of(group, q, f) : 0.0f;
          any |= scale[q] != 0;
        }
        on[count] = f;
        count += any;
      }
      on_count_[group] = count;
    }
  }

  // Blocks of columns of g @ weight, for all groups.
  template <class Y>
  void product(int64_t begin, int64_t end, const void* weight, int64_t columns, Y y) {
    for (int64_t group = 0; group < size(); ++group) {
      GateSums sums{.weight = weight,
                    .dtype = p_.dtype,
                    .columns = columns,
                    .on = on_ + group * p_.features,
                    .scale = scale_ + group * kGateTogether * p_.features,
                    .count = on_count_[group],
                    .pairs = pairs_in(group),
                    .y = {}};
      for (int q = 0; q < sums.pairs; ++q) sums.y[q] = y(group, q);
      kernel_(sums, begin * kBlock, std::min(end * kBlock, columns));
    }
  }

  const ClassGateParams& p_;
  const int64_t* pairs_;
  int64_t count_;
  GateSumsKernel kernel_;
  int64_t* on_;        // [groups][F], of which on_count_[group] are set
  int64_t* on_count_;  // [groups]
  float* scale_;       // [groups][F][kGateTogether], likewise: g of the rows that are on
  float* sum_;         // [groups][kGateTogether][F]: g6 before its gate
};

}  // namespace

void class_gate(const ClassGateParams& p, const Parallel& parallel) {
  std::vector<int64_t> pairs(static_cast<size_t>(p.pairs));
  std::iota(pairs.begin(), pairs.end(), 0);
  const auto place = [&](int64_t pair) {
    return std::pair(p.image[pair], p.position[p.image[pair] * p.labels + p.label[pair]]);
  };
  // those of one image and place have the same gates
  std::stable_sort(pairs.begin(), pairs.end(), [&](int64_t a, int64_t b) { return place(a) < place(b); });
  for (int64_t first = 0; first < p.pairs; first += kPairs)
    Groups(p, pairs.data() + first, std::min(kPairs, p.pairs - first)).run(parallel);
}

}  // namespace ddn::cpu
