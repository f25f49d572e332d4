// Pooling and unpooling with 2-bit switches: max_pool2x2, max_unpool2x2, gather2x2.
#include "torch/launch.h"

namespace ddn {
namespace {

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
    run_on_cpu(cpu::max_pool2x2, p, images * half_up(p.height), 2 * p.width * p.channels);
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
    run_on_cpu(cpu::max_unpool2x2, p, passes * half_up(p.height), 2 * p.width * p.channels);
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
    run_on_cpu(cpu::gather2x2, p, passes * half_up(p.height), 2 * p.width * p.channels);
  } else {
    run_on_cuda<Gather2x2Params>(op, DDN_CUDA_KERNEL(gather2x2), p, x);
  }
  return y;
}

}  // namespace
}  // namespace ddn

STABLE_TORCH_LIBRARY_FRAGMENT(ddn_fast, m) {
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
