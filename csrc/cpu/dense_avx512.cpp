#include "cpu/dense_float.h"

namespace ddn::cpu::avx512 {
const DenseKernel dense_float32{packed_bytes<float>, pack<float, float>, multiply_float<float>};
const DenseKernel dense_bfloat16{packed_bytes<float>, pack<float, BF16>, multiply_float<BF16>};
}  // namespace ddn::cpu::avx512
