// dense_outer: y = a^T @ b, the sum of the outer products of their rows: what the gradients of `dense` are made of. In
// stage 2 of training one side of it is hundreds of megabytes of weights, or their gradient, and the other few rows.
#include "cpu/dense_outer.h"

#include <cstring>

#include "cpu/variants.h"
#include "kernels.h"

namespace ddn::cpu {
namespace {

using Tasks = void (*)(const DenseOuterParams&, int64_t, int64_t);

constexpr Variant<Tasks> kVariants[] = {{Isa::plain, dense_outer_plain},
                                        {Isa::avx2, DDN_AVX2(dense_outer_avx2)},
                                        {Isa::avx512, DDN_AVX512(dense_outer_avx512)}};

}  // namespace

void dense_outer(const DenseOuterParams& p, const Parallel& parallel) {
  if (p.depth == 0) std::memset(p.y, 0, static_cast<size_t>(p.rows * p.columns) * sizeof(float));
  const Tasks tasks = best_variant(kVariants, isa());
  parallel(dense_outer_tasks(p), [&](int64_t begin, int64_t end) { tasks(p, begin, end); });
}

}  // namespace ddn::cpu
