#include "cuda/class_gate.cuh"

#include "kernels.h"

namespace ddn::cuda {
namespace {

int64_t up(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

// The workspace: sums of the first product, then those of the second.
int64_t first_sums(const ClassGateParams& p) {
  return up(up(p.features, kGateRows) * p.pairs * p.features, 64) * 64;
}

template <class W>
int launch_gate(const ClassGateParams& p, Stream stream) {
  constexpr int kBytes = kGateRows * (kGatePairs + 1) * 4 + 16;
  const auto is_wide = [](const void* weight, int64_t columns) {
    return columns % kGateColumns == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  };
  float* const memory = static_cast<float*>(p.workspace);
  const int shares = static_cast<int>(up(p.features, kGateRows));
  const GateLaunch first{p, nullptr, memory, p.features, shares, is_wide(p.fc7_weight, p.features)};
  const GateLaunch second{p, memory, memory + first_sums(p), p.inputs, shares, is_wide(p.fc6_weight, p.inputs)};
  if (up(p.pairs, kGatePairs) > 65535 || shares > 65535) return cudaErrorInvalidValue;
  for (const GateLaunch& launch : {first, second}) {
    dim3 grid{};
    grid.x = static_cast<unsigned>(up(launch.columns, kGateThreads * kGateColumns));
    grid.y = static_cast<unsigned>(shares);
    grid.z = static_cast<unsigned>(up(p.pairs, kGatePairs));
    DDN_LAUNCH_SHARED(gate_product_kernel<W>, grid, kGateThreads, kBytes, stream, launch);
    if (const cudaError_t error = cudaGetLastError()) return error;
  }
  const int64_t blocks = up(p.pairs * p.inputs, 256);
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  DDN_LAUNCH(gate_sum_kernel, static_cast<unsigned>(blocks), 256, stream, second);
  return cudaGetLastError();
}

}  // namespace

int64_t class_gate_workspace_bytes(const ClassGateParams& p) {
  return (first_sums(p) + up(p.features, kGateRows) * p.pairs * p.inputs) * static_cast<int64_t>(sizeof(float));
}

int class_gate(const ClassGateParams& p, Stream stream) {
  if (p.pairs == 0) return cudaSuccess;
  if (p.dtype == Dtype::float32) return launch_gate<float>(p, stream);
  if (p.dtype == Dtype::bfloat16) return launch_gate<BFloat16>(p, stream);
  if (p.dtype == Dtype::float16) return launch_gate<Float16>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace ddn::cuda
