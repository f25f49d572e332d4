// What the op families (ops_*.cpp) share: the one seam between torch and the kernels. A family holds its schemas and,
// per op, check -> allocate -> fill params -> launch. LibTorch stable ABI: a binary built here serves every torch
// >= 2.11. Autograd and fake kernels: ddn_fast/ops.py. Maps are logically [N,C,H,W] and come in any strides; kernels
// see channels_last, to which others are converted once.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "switches.h"
#include "torch/checks.h"

// A CPU-only torch lacks it, and the stable API of torch 2.11 has no other way to the current stream.
extern "C" [[gnu::weak, gnu::visibility("default")]] AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                                       void** stream);

namespace ddn {

using torch::headeronly::MemoryFormat;

inline Tensor channels_last(const Tensor& x) {
  return torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
}

inline Tensor empty_map(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::empty(shape, like.scalar_type(), like.layout(), like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::empty(shape, dtype, like.layout(), like.device());
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional(torch::stable::contiguous(*t)) : std::nullopt;
}

inline const int64_t* indices_of(const std::optional<Tensor>& indices) {
  return indices ? static_cast<const int64_t*>(indices->const_data_ptr()) : nullptr;
}

inline std::optional<torch::stable::accelerator::DeviceGuard> guard(const Tensor& x) {
  std::optional<torch::stable::accelerator::DeviceGuard> on_device;
  if (x.is_cuda()) on_device.emplace(x.get_device_index());
  return on_device;
}

// kernel(p, begin, end) over shares of `rows` on torch's own threads, so torch.set_num_threads holds here too.
// `elements`: how many values a row is made of.
template <class Params>
void run_on_cpu(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t rows, int64_t elements) {
  constexpr int64_t kElementsWorthAThread = 32768;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kElementsWorthAThread / std::max<int64_t>(1, elements)),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

// The same threads for kernels that share their work out by themselves.
inline cpu::Parallel torch_threads() {
  const auto run = [](int64_t count, cpu::Parallel::Body body, void* context) {
    std::atomic_flag failed;  // torch's C interface would make "API call failed" of what a thread throws
    std::exception_ptr error;
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      try {
        body(context, begin, end);
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  };
  return {run, torch::stable::get_num_threads()};
}

template <class Params>
void run_on_cuda(const char* op, int (*kernel)(const Params&, cuda::Stream), const Params& p, const Tensor& x) {
#ifdef DDN_WITH_CUDA
  if (!aoti_torch_get_current_cuda_stream) fail(op, "x is a CUDA tensor, but this torch has no CUDA streams");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const int error = kernel(p, static_cast<cuda::Stream>(stream));
  if (cuda::is_missing_code(error))
    fail(op, "no kernel for this GPU among those built (", DDN_CUDA_ARCHS,
         "): rebuild ddn-fast with its compute capability in TORCH_CUDA_ARCH_LIST");
  if (error != 0) fail(op, "CUDA error ", error, ": ", cuda::error_text(error));
#else
  (void)kernel, (void)p, (void)x;
  fail(op,
       "x is a CUDA tensor, but ddn-fast was built without CUDA kernels: rebuild it where nvcc is found "
       "(DDN_CUDA=ON makes that a condition)");
#endif
}

// The same for a kernel that wants a workspace: bytes_of(p) bytes, which live until what is enqueued here has run.
template <class Params>
void run_on_cuda(const char* op, int (*kernel)(const Params&, cuda::Stream), int64_t (*bytes_of)(const Params&),
                 Params p, const Tensor& x) {
  Tensor workspace;
  if (bytes_of) {
    const int64_t bytes = bytes_of(p);
    if (bytes < 0) fail(op, "x must be of sizes whose products fit 32-bit integers, got ", text(shape_of(x)));
    workspace = empty(x, {bytes}, ScalarType::Byte);
    p.workspace = workspace.mutable_data_ptr();
  }
  run_on_cuda<Params>(op, kernel, p, x);
}

#ifdef DDN_WITH_CUDA
#define DDN_CUDA_KERNEL(name) (&cuda::name)
#else
#define DDN_CUDA_KERNEL(name) nullptr
#endif

// switches fit `images` images of pooled h x w maps, and image_of_pass (if any) sends every pass to one of them.
inline void check_switches(const char* op, const Tensor& x, int64_t rows, int64_t columns, const Tensor& switches,
                           const std::optional<Tensor>& image_of_pass) {
  const int64_t passes = x.size(0);
  check_same_device(op, "switches", switches, x);
  check_dtype(op, "switches", switches, ScalarType::Byte);
  const int64_t images = image_of_pass && switches.dim() == 4 ? switches.size(0) : passes;
  check_shape(op, "switches", switches, {images, rows, columns, switch_bytes(x.size(1))});
  if (!image_of_pass) return;
  check_same_device(op, "image_of_pass", *image_of_pass, x);
  check_dtype(op, "image_of_pass", *image_of_pass, ScalarType::Long);
  check_shape(op, "image_of_pass", *image_of_pass, {passes});
}

// On CUDA the kernel checks this itself: reading the values here would wait for the device.
inline void check_range(const char* op, const int64_t* image_of_pass, int64_t passes, int64_t images) {
  for (int64_t p = 0; image_of_pass && p < passes; ++p)
    if (image_of_pass[p] < 0 || image_of_pass[p] >= images)
      fail(op, "image_of_pass must be in 0..", images - 1, ", got ", image_of_pass[p], " at [", p, "]");
}

}  // namespace ddn
