// The one seam between torch and the kernels: schemas; per op check -> allocate -> fill params -> launch.
// LibTorch stable ABI: a binary built here serves every torch >= 2.11. Autograd and fake kernels: ddn_fast/ops.py.
// Maps are logically [N,C,H,W] and come in any strides; kernels see channels_last, to which others are converted once.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "kernels.h"
#include "switches.h"
#include "torch/checks.h"

// A CPU-only torch lacks it, and the stable API of torch 2.11 has no other way to the current stream.
extern "C" [[gnu::weak, gnu::visibility("default")]] AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                                       void** stream);

namespace ddn {
namespace {

using torch::headeronly::MemoryFormat;

Tensor channels_last(const Tensor& x) {
  return torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
}

Tensor empty_map(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::empty(shape, like.scalar_type(), like.layout(), like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

// Pooled rows over torch's own threads, so torch.set_num_threads holds here too.
template <class Params>
void run_on_cpu(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t maps) {
  constexpr int64_t kElementsWorthAThread = 32768;
  const int64_t row = 2 * p.width * p.channels;
  torch::stable::parallel_for(0, maps * half_up(p.height), std::max<int64_t>(1, kElementsWorthAThread / row),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

template <class Params>
void run_on_cuda(const char* op, int (*kernel)(const Params&, cuda::Stream), const Params& p, const Tensor& x) {
#ifdef DDN_WITH_CUDA
  if (!aoti_torch_get_current_cuda_stream) fail(op, "x is a CUDA tensor, but this torch has no CUDA streams");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
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

#ifdef DDN_WITH_CUDA
#define DDN_CUDA_KERNEL(name) (&cuda::name)
#else
#define DDN_CUDA_KERNEL(name) nullptr
#endif

// switches fit `images` images of pooled h x w maps, and image_of_pass (if any) sends every pass to one of them.
void check_switches(const char* op, const Tensor& x, int64_t rows, int64_t columns, const Tensor& switches,
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
void check_range(const char* op, const int64_t* image_of_pass, int64_t passes, int64_t images) {
  for (int64_t p = 0; image_of_pass && p < passes; ++p)
    if (image_of_pass[p] < 0 || image_of_pass[p] >= images)
      fail(op, "image_of_pass must be in 0..", images - 1, ", got ", image_of_pass[p], " at [", p, "]");
}

const int64_t* indices_of(const std::optional<Tensor>& image_of_pass) {
  return image_of_pass ? static_cast<const int64_t*>(image_of_pass->const_data_ptr()) : nullptr;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional(torch::stable::contiguous(*t)) : std::nullopt;
}

std::optional<torch::stable::accelerator::DeviceGuard> guard(const Tensor& x) {
  std::optional<torch::stable::accelerator::DeviceGuard> on_device;
  if (x.is_cuda()) on_device.emplace(x.get_device_index());
  return on_device;
}

std::tuple<Tensor, Tensor> max_pool2x2(const Tensor& x_any) {
  constexpr const char* op = "max_pool2x2";
  const Dtype dtype = check_map(op, x_any);
  const auto on_device = guard(x_any);
  const Tensor x = channels_last(x_any);
  const int64_t images = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t rows = half_up(height), columns = half_up(width);

  Tensor y = empty_map(x, {images, channels, rows, columns});
  Tensor switches =
      torch::stable::empty({images, rows, columns, switch_bytes(channels)}, ScalarType::Byte, x.layout(), x.device());
  const MaxPool2x2Params p{.x = x.const_data_ptr(),
                           .y = y.mutable_data_ptr(),
                           .switches = static_cast<uint8_t*>(switches.mutable_data_ptr()),
                           .dtype = dtype,
                           .images = images,
                           .height = height,
                           .width = width,
                           .channels = channels};
  if (x.is_cpu())
    run_on_cpu(cpu::max_pool2x2, p, images);
  else
    run_on_cuda<MaxPool2x2Params>(op, DDN_CUDA_KERNEL(max_pool2x2), p, x);
  return {y, switches};
}

Tensor max_unpool2x2(const Tensor& x_any, const Tensor& switches_any, int64_t height, int64_t width,
                     const std::optional<Tensor>& image_of_pass_any) {
  constexpr const char* op = "max_unpool2x2";
  const Dtype dtype = check_map(op, x_any);
  if (height < 1 || width < 1) fail(op, "height and width must be at least 1, got ", height, " and ", width);
  const int64_t passes = x_any.size(0), channels = x_any.size(1);
  check_shape(op, "x", x_any, {passes, channels, half_up(height), half_up(width)});
  check_switches(op, x_any, half_up(height), half_up(width), switches_any, image_of_pass_any);
  const auto on_device = guard(x_any);
  const Tensor x = channels_last(x_any), switches = torch::stable::contiguous(switches_any);
  const std::optional<Tensor> image_of_pass = contiguous(image_of_pass_any);

  Tensor y = empty_map(x, {passes, channels, height, width});
  const MaxUnpool2x2Params p{.x = x.const_data_ptr(),
                             .switches = static_cast<const uint8_t*>(switches.const_data_ptr()),
                             .image_of_pass = indices_of(image_of_pass),
                             .y = y.mutable_data_ptr(),
                             .dtype = dtype,
                             .images = switches.size(0),
                             .passes = passes,
                             .height = height,
                             .width = width,
                             .channels = channels};
  if (x.is_cpu()) {
    check_range(op, p.image_of_pass, passes, p.images);
    run_on_cpu(cpu::max_unpool2x2, p, passes);
  } else {
    run_on_cuda<MaxUnpool2x2Params>(op, DDN_CUDA_KERNEL(max_unpool2x2), p, x);
  }
  return y;
}

Tensor gather2x2(const Tensor& x_any, const Tensor& switches_any, const std::optional<Tensor>& image_of_pass_any) {
  constexpr const char* op = "gather2x2";
  const Dtype dtype = check_map(op, x_any);
  const int64_t passes = x_any.size(0), channels = x_any.size(1), height = x_any.size(2), width = x_any.size(3);
  check_switches(op, x_any, half_up(height), half_up(width), switches_any, image_of_pass_any);
  const auto on_device = guard(x_any);
  const Tensor x = channels_last(x_any), switches = torch::stable::contiguous(switches_any);
  const std::optional<Tensor> image_of_pass = contiguous(image_of_pass_any);

  Tensor y = empty_map(x, {passes, channels, half_up(height), half_up(width)});
  const Gather2x2Params p{.x = x.const_data_ptr(),
                          .switches = static_cast<const uint8_t*>(switches.const_data_ptr()),
                          .image_of_pass = indices_of(image_of_pass),
                          .y = y.mutable_data_ptr(),
                          .dtype = dtype,
                          .images = switches.size(0),
                          .passes = passes,
                          .height = height,
                          .width = width,
                          .channels = channels};
  if (x.is_cpu()) {
    check_range(op, p.image_of_pass, passes, p.images);
    run_on_cpu(cpu::gather2x2, p, passes);
  } else {
    run_on_cuda<Gather2x2Params>(op, DDN_CUDA_KERNEL(gather2x2), p, x);
  }
  return y;
}

}  // namespace
}  // namespace ddn

STABLE_TORCH_LIBRARY(ddn_fast, m) {
  m.def("max_pool2x2(Tensor x) -> (Tensor y, Tensor switches)");
  m.def("max_unpool2x2(Tensor x, Tensor switches, SymInt height, SymInt width, Tensor? image_of_pass=None) -> Tensor");
  m.def("gather2x2(Tensor x, Tensor switches, Tensor? image_of_pass=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CPU, m) {
  m.impl("max_pool2x2", TORCH_BOX(&ddn::max_pool2x2));
  m.impl("max_unpool2x2", TORCH_BOX(&ddn::max_unpool2x2));
  m.impl("gather2x2", TORCH_BOX(&ddn::gather2x2));
}

// Registered in every build: without CUDA kernels the message says how to get them.
STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CUDA, m) {
  m.impl("max_pool2x2", TORCH_BOX(&ddn::max_pool2x2));
  m.impl("max_unpool2x2", TORCH_BOX(&ddn::max_unpool2x2));
  m.impl("gather2x2", TORCH_BOX(&ddn::gather2x2));
}
