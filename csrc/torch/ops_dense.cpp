// The head's and the bridge's products: dense, dense_outer, class_gate.
#include <utility>

#include "torch/launch.h"

namespace ddn {
namespace {

// `shape` with -1 where any size of at least 1 will do.
std::vector<int64_t> check_sizes(const char* op, const char* name, const Tensor& t, const char* letters,
                                 std::vector<int64_t> shape) {
  const std::vector<int64_t> got = shape_of(t);
  bool fits = got.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 ? got[i] >= 1 : got[i] == shape[i];
  if (!fits) fail(op, name, " must be ", letters, " with no empty axis, got ", text(got));
  return got;
}

Tensor dense(const Tensor& x_any, const Tensor& weight_any, const std::optional<Tensor>& bias_any, bool relu) {
  constexpr const char* op = "dense";
  const Dtype x_dtype = check_float_or_bfloat16(op, "x", x_any);
  const Dtype dtype = check_float_or_bfloat16(op, "weight", weight_any);
  check_same_device(op, "weight", weight_any, x_any);
  const std::vector<int64_t> shape = check_sizes(op, "weight", weight_any, "[N,K]", {-1, -1});
  if (x_any.dim() != 2 || x_any.size(1) != shape[1])
    fail(op, "x must be [M,", shape[1], "], got ", text(shape_of(x_any)));
  if (bias_any) {
    check_same_device(op, "bias", *bias_any, x_any);
    check_dtype(op, "bias", *bias_any, ScalarType::Float);
    check_shape(op, "bias", *bias_any, {shape[0]});
  }
  const Tensor x = torch::stable::contiguous(x_any), weight = torch::stable::contiguous(weight_any);
  const std::optional<Tensor> bias = contiguous(bias_any);
  const int64_t rows = x.size(0);

  Tensor y = empty(x, {rows, shape[0]}, ScalarType::Float);
  const DenseParams p{
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr,
      .y = static_cast<float*>(y.mutable_data_ptr()),
      .x_dtype = x_dtype,
      .dtype = dtype,
      .rows = rows,
      .outputs = shape[0],
      .inputs = shape[1],
      .relu = relu,
  };
  cpu::dense(p, torch_threads());
  return y;
}

Tensor dense_outer(const Tensor& a_any, const Tensor& b_any) {
  constexpr const char* op = "dense_outer";
  check_dtype(op, "a", a_any, ScalarType::Float);
  check_dtype(op, "b", b_any, ScalarType::Float);
  check_same_device(op, "b", b_any, a_any, "a");
  if (a_any.dim() != 2) fail(op, "a must be [D,R], got ", text(shape_of(a_any)));
  if (b_any.dim() != 2 || b_any.size(0) != a_any.size(0) || b_any.size(1) < 1)
    fail(op, "b must be [", a_any.size(0), ",C] with C at least 1, got ", text(shape_of(b_any)));
  const Tensor a = torch::stable::contiguous(a_any), b = torch::stable::contiguous(b_any);
  Tensor y = empty(a, {a.size(1), b.size(1)}, ScalarType::Float);
  cpu::dense_outer({.a = static_cast<const float*>(a.const_data_ptr()),
                    .b = static_cast<const float*>(b.const_data_ptr()),
                    .y = static_cast<float*>(y.mutable_data_ptr()),
                    .depth = a.size(0),
                    .rows = a.size(1),
                    .columns = b.size(1)},
                   torch_threads());
  return y;
}

void check_indices(const char* op, const char* name, const Tensor& t, int64_t end) {
  const int64_t* values = static_cast<const int64_t*>(t.const_data_ptr());
  for (int64_t i = 0; i < t.numel(); ++i)
    if (values[i] < 0 || values[i] >= end)
      fail(op, name, " must be in 0..", end - 1, ", got ", values[i], " at [", i, "]");
}

Tensor class_gate(const Tensor& cls_weight_any, const Tensor& fc7_weight_any, const Tensor& fc6_weight_any,
                  const Tensor& fc6_any, const Tensor& fc7_any, const Tensor& position_any, const Tensor& image_any,
                  const Tensor& label_any) {
  constexpr const char* op = "class_gate";
  const std::vector<int64_t> cls = check_sizes(op, "cls_weight", cls_weight_any, "[L,F]", {-1, -1});
  const int64_t labels = cls[0], features = cls[1];
  check_shape(op, "fc7_weight", fc7_weight_any, {features, features});
  const int64_t inputs = check_sizes(op, "fc6_weight", fc6_weight_any, "[F,K]", {features, -1})[1];
  const std::vector<int64_t> grid = shape_of(fc6_any);
  if (grid.size() != 3 || grid[1] < 1 || grid[2] != features)
    fail(op, "fc6 must be [B,G*G,", features, "], got ", text(grid));
  check_shape(op, "fc7", fc7_any, grid);
  check_shape(op, "position", position_any, {grid[0], labels});
  if (image_any.dim() != 1) fail(op, "image must be [Q], got ", text(shape_of(image_any)));
  check_shape(op, "label", label_any, {image_any.size(0)});
  const std::pair<const char*, const Tensor*> others[] = {
      {"fc7_weight", &fc7_weight_any}, {"fc6_weight", &fc6_weight_any}, {"fc6", &fc6_any},    {"fc7", &fc7_any},
      {"position", &position_any},     {"image", &image_any},           {"label", &label_any}};
  for (const auto& [name, tensor] : others) check_same_device(op, name, *tensor, cls_weight_any, "cls_weight");
  const bool half = fc7_weight_any.is_cuda() && fc7_weight_any.scalar_type() == ScalarType::Half;
  const Dtype dtype = half ? Dtype::float16 : check_float_or_bfloat16(op, "fc7_weight", fc7_weight_any);
  check_dtype(op, "fc6_weight", fc6_weight_any, fc7_weight_any.scalar_type());
  const Dtype cls_dtype = check_float_or_bfloat16(op, "cls_weight", cls_weight_any);
  const Dtype fc6_dtype = check_float_or_bfloat16(op, "fc6", fc6_any);
  const Dtype fc7_dtype = check_float_or_bfloat16(op, "fc7", fc7_any);
  for (const auto& [name, tensor] : {others[4], others[5], others[6]}) check_dtype(op, name, *tensor, ScalarType::Long);

  const auto on_device = guard(cls_weight_any);
  const auto dense_of = [](const Tensor& t) { return torch::stable::contiguous(t); };
  const Tensor cls_weight = dense_of(cls_weight_any), fc7_weight = dense_of(fc7_weight_any),
               fc6_weight = dense_of(fc6_weight_any), fc6 = dense_of(fc6_any), fc7 = dense_of(fc7_any),
               position = dense_of(position_any), image = dense_of(image_any), label = dense_of(label_any);
  if (cls_weight.is_cpu()) {  // on CUDA the kernel checks: reading the values here would wait for the device
    check_indices(op, "position", position, grid[1]);
    check_indices(op, "image", image, grid[0]);
    check_indices(op, "label", label, labels);
  }

  Tensor y = empty(cls_weight, {image.numel(), inputs}, ScalarType::Float);
  const ClassGateParams p{
      .cls_weight = cls_weight.const_data_ptr(),
      .fc7_weight = fc7_weight.const_data_ptr(),
      .fc6_weight = fc6_weight.const_data_ptr(),
      .fc6 = fc6.const_data_ptr(),
      .fc7 = fc7.const_data_ptr(),
      .position = static_cast<const int64_t*>(position.const_data_ptr()),
      .image = static_cast<const int64_t*>(image.const_data_ptr()),
      .label = static_cast<const int64_t*>(label.const_data_ptr()),
      .y = static_cast<float*>(y.mutable_data_ptr()),
      .cls_dtype = cls_dtype,
      .dtype = dtype,
      .fc6_dtype = fc6_dtype,
      .fc7_dtype = fc7_dtype,
      .labels = labels,
      .features = features,
      .places = grid[1],
      .inputs = inputs,
      .pairs = image.numel(),
      .images = grid[0],
      .workspace = nullptr,
  };
  if (cls_weight.is_cpu())
    cpu::class_gate(p, torch_threads());
  else
    run_on_cuda<ClassGateParams>(op, DDN_CUDA_KERNEL(class_gate), DDN_CUDA_KERNEL(class_gate_workspace_bytes), p,
                                 cls_weight);
  return y;
}

}  // namespace
}  // namespace ddn

STABLE_TORCH_LIBRARY_FRAGMENT(ddn_fast, m) {
  m.def("dense(Tensor x, Tensor weight, Tensor? bias=None, bool relu=False) -> Tensor");
  m.def("dense_outer(Tensor a, Tensor b) -> Tensor");
  m.def(
      "class_gate(Tensor cls_weight, Tensor fc7_weight, Tensor fc6_weight, Tensor fc6, Tensor fc7, Tensor position, "
      "Tensor image, Tensor label) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CPU, m) {
  m.impl("dense", TORCH_BOX(&ddn::dense));
  m.impl("dense_outer", TORCH_BOX(&ddn::dense_outer));
  m.impl("class_gate", TORCH_BOX(&ddn::class_gate));
}

// dense and dense_outer on CUDA are the vendor library's, by way of torch: ddn_fast/dense_ops.py registers them.
STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CUDA, m) {
  m.impl("class_gate", TORCH_BOX(&ddn::class_gate));
}
