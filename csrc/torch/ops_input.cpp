// The way from an image to the network: network_input.
#include "torch/launch.h"

namespace ddn {
namespace {

Dtype kernel_dtype(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default: fail(op, "dtype must be Float, BFloat16 or Half, got ", torch::headeronly::toString(dtype));
  }
}

Tensor network_input(const Tensor& image_any, int64_t side, ScalarType dtype) {
  constexpr const char* op = "network_input";
  check_dtype(op, "image", image_any, ScalarType::Byte);
  const std::vector<int64_t> shape = shape_of(image_any);
  if (shape.size() != 3 || shape[0] < 1 || shape[1] < 1 || shape[2] != 3)
    fail(op, "image must be [H,W,3] with H and W at least 1, got ", text(shape));
  if (side < 1) fail(op, "side must be at least 1, got ", side);
  const Dtype kernel = kernel_dtype(op, dtype);
  const Tensor image = torch::stable::contiguous(image_any);

  Tensor y = empty(image, {3, side, side}, dtype);
  cpu::network_input({.image = static_cast<const uint8_t*>(image.const_data_ptr()),
                      .y = y.mutable_data_ptr(),
                      .dtype = kernel,
                      .height = shape[0],
                      .width = shape[1],
                      .side = side});
  return y;
}

}  // namespace
}  // namespace ddn

STABLE_TORCH_LIBRARY_FRAGMENT(ddn_fast, m) {
  m.def("network_input(Tensor image, SymInt side, ScalarType dtype=float32) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CPU, m) {
  m.impl("network_input", TORCH_BOX(&ddn::network_input));
}
