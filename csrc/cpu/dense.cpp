// dense: the choice among its variants, and the plain one (dense_blocks.h says how they work).
#include "cpu/dense.h"

#include "cpu/dense_float.h"
#include "cpu/scratch.h"
#include "cpu/variants.h"

namespace ddn::cpu {
namespace plain {
const DenseKernel dense_float32{packed_bytes<float>, pack<float, float>, multiply_float<float>};
const DenseKernel dense_bfloat16{packed_bytes<float>, pack<float, BF16>, multiply_float<BF16>};
}  // namespace plain

namespace {

const DenseKernel& best_kernel(Dtype weight) {
  static constexpr Variant<const DenseKernel*> float32[] = {
      {Isa::plain, &plain::dense_float32},
      {Isa::avx2, DDN_AVX2(&avx2::dense_float32)},
      {Isa::avx512, DDN_AVX512(&avx512::dense_float32)},
  };
  static constexpr Variant<const DenseKernel*> bfloat16[] = {
      {Isa::plain, &plain::dense_bfloat16},
      {Isa::avx2, DDN_AVX2(&avx2::dense_bfloat16)},
      {Isa::avx512, DDN_AVX512(&avx512::dense_bfloat16)},
      {Isa::avx512_bf16, DDN_AVX512_BF16(&avx512_bf16::dense_bfloat16)},
      {Isa::amx_bf16, DDN_AMX(&amx_bf16::dense_bfloat16)},
  };
  return weight == Dtype::float32 ? *best_variant(float32, isa()) : *best_variant(bfloat16, isa());
}

}  // namespace

void dense(const DenseParams& all, const Parallel& parallel) {
  const DenseKernel& kernel = best_kernel(all.dtype);
  for (int64_t row = 0; row < all.rows; row += kDenseRows) {
    DenseParams p = all;
    p.x = static_cast<const char*>(all.x) + row * all.inputs * element_bytes(all.x_dtype);
    p.y = all.y + row * all.outputs;
    p.rows = least(kDenseRows, all.rows - row);
    void* packed = scratch(Scratch::shared, static_cast<size_t>(kernel.packed_bytes(p)));
    parallel(blocks_of(p.inputs, kDenseBlock), [&](int64_t begin, int64_t end) { kernel.pack(p, packed, begin, end); });
    parallel(blocks_of(p.outputs, kDenseBlock),
             [&](int64_t begin, int64_t end) { kernel.multiply(p, packed, begin, end); });
  }
}

}  // namespace ddn::cpu
