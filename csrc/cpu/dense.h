// The variants of dense, one per instruction set and dtype of the weights.
#pragma once
#include "kernels.h"

namespace ddn::cpu {

constexpr int64_t kDenseBlock = 32, kDenseRows = 128;

// For at most kDenseRows rows: pack(p, packed, begin, end) brings blocks of kDenseBlock inputs of x into the order that
// multiply reads, in `packed` of packed_bytes(p); then multiply(p, packed, begin, end) computes blocks of kDenseBlock
// outputs.
struct DenseKernel {
  int64_t (*packed_bytes)(const DenseParams& p);
  void (*pack)(const DenseParams& p, void* packed, int64_t begin, int64_t end);
  void (*multiply)(const DenseParams& p, const void* packed, int64_t begin, int64_t end);
};

namespace plain {
extern const DenseKernel dense_float32, dense_bfloat16;
}
namespace avx2 {
extern const DenseKernel dense_float32, dense_bfloat16;
}
namespace avx512 {
extern const DenseKernel dense_float32, dense_bfloat16;
}
namespace avx512_bf16 {
extern const DenseKernel dense_bfloat16;
}
namespace amx_bf16 {
extern const DenseKernel dense_bfloat16;
}

}  // namespace ddn::cpu
