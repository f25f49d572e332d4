// Memory of the device, or of the host where the probe's kernels run under emulation.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "cuda/dev.cuh"

namespace ddn::probe {

inline void require_success(int error, const char* what) {
  if (error == 0) return;
#ifdef DDN_EMU
  std::fprintf(stderr, "%s: error %d\n", what, error);
#else
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(error)));
#endif
  std::exit(2);
}

inline void finish(const char* what) {
#ifndef DDN_EMU
  require_success(cudaDeviceSynchronize(), what);
#endif
  require_success(cudaGetLastError(), what);
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
#ifdef DDN_EMU
    at_ = static_cast<T*>(std::aligned_alloc(256, (bytes() + 255) / 256 * 256));
#else
    require_success(cudaMalloc(&at_, bytes() + !count), "cudaMalloc");
#endif
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
#ifdef DDN_EMU
    std::memcpy(at_, values.data(), bytes());
#else
    require_success(cudaMemcpy(at_, values.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
#endif
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() {
#ifdef DDN_EMU
    std::free(at_);
#else
    cudaFree(at_);
#endif
  }

  T* at() const {
    return at_;
  }
  size_t count() const {
    return count_;
  }
  size_t bytes() const {
    return count_ * sizeof(T);
  }
  // Every byte becomes `value`: 0xff poisons.
  void fill(int value) {
#ifdef DDN_EMU
    std::memset(static_cast<void*>(at_), value, bytes());
#else
    require_success(cudaMemset(at_, value, bytes()), "cudaMemset");
#endif
  }
  std::vector<T> values() const {
    std::vector<T> on_host(count_);
#ifdef DDN_EMU
    std::memcpy(on_host.data(), at_, bytes());
#else
    require_success(cudaMemcpy(on_host.data(), at_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
#endif
    return on_host;
  }

 private:
  T* at_ = nullptr;
  size_t count_ = 0;
};

}  // namespace ddn::probe
