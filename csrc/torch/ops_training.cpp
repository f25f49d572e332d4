// The segmentation network in training: deconv3x3_moments, seg_score, and their gradients.
#include "torch/launch.h"

namespace ddn {
namespace {

constexpr int64_t kLeastChannels = 4;  // of a map that winograd takes

int64_t padded(int64_t channels) {
  return (channels + 31) / 32 * 32;
}

const float* floats(const Tensor& t) {
  return static_cast<const float*>(t.const_data_ptr());
}
float* new_floats(Tensor& t) {
  return static_cast<float*>(t.mutable_data_ptr());
}

// A map that an op of training reads, as [N,H,W,C].
Tensor training_map(const char* op, const char* name, const Tensor& x) {
  if (x.scalar_type() != ScalarType::Float && x.scalar_type() != ScalarType::BFloat16)
    fail(op, name, " must be Float or BFloat16, got ", torch::headeronly::toString(x.scalar_type()));
  if (x.dim() != 4 || x.numel() == 0) fail(op, name, " must be [N,C,H,W] with no empty axis, got ", text(shape_of(x)));
  return channels_last(x);
}

// A float32 tensor of this shape, contiguous.
Tensor float_tensor(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& shape,
                    const Tensor& x) {
  check_same_device(op, name, t, x);
  check_dtype(op, name, t, ScalarType::Float);
  check_shape(op, name, t, shape);
  return torch::stable::contiguous(t);
}

// The gradient of seg_score of x, as [N,H,W,2].
Tensor score_gradient(const char* op, const char* name, const Tensor& grad_y, const Tensor& x) {
  check_same_device(op, name, grad_y, x);
  check_dtype(op, name, grad_y, ScalarType::Float);
  check_shape(op, name, grad_y, {x.size(0), 2, x.size(2), x.size(3)});
  return channels_last(grad_y);
}

// What both directions of deconv3x3_moments read.
struct Layer {
  const char* op;
  Tensor x, weight, scale, shift;
  std::optional<Tensor> switches;
  int64_t maps, in_channels, out_channels, height, width;

  Layer(const char* op, const Tensor& x_any, const Tensor& weight_any, const Tensor& scale_any, const Tensor& shift_any,
        const std::optional<Tensor>& switches_any)
      : op(op), x(training_map(op, "x", x_any)) {
    maps = x.size(0), in_channels = x.size(1), height = x.size(2), width = x.size(3);
    if (weight_any.dim() != 4 || weight_any.size(0) != in_channels || weight_any.size(2) != 3 ||
        weight_any.size(3) != 3)
      fail(op, "weight must be [", in_channels, ",O,3,3], got ", text(shape_of(weight_any)));
    out_channels = weight_any.size(1);
    if (in_channels < kLeastChannels || out_channels < kLeastChannels)
      fail(op, "weight must have at least ", kLeastChannels, " channels in and out, got ", in_channels, " and ",
           out_channels);
    check_same_device(op, "weight", weight_any, x);
    check_dtype(op, "weight", weight_any, ScalarType::Float);
    weight = channels_last(weight_any);
    scale = float_tensor(op, "scale", scale_any, {in_channels}, x);
    shift = float_tensor(op, "shift", shift_any, {in_channels}, x);
    if (switches_any) {
      check_switches(op, x, height, width, *switches_any, std::nullopt);
      switches = torch::stable::contiguous(*switches_any);
      height *= 2, width *= 2;
    }
  }

  const uint8_t* switch_data() const {
    return switches ? static_cast<const uint8_t*>(switches->const_data_ptr()) : nullptr;
  }
  Dtype dtype() const {
    return x.scalar_type() == ScalarType::Float ? Dtype::float32 : Dtype::bfloat16;
  }
};

using Moments = std::tuple<Tensor, Tensor, Tensor>;
using LayerGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Moments deconv3x3_moments(const Tensor& x_any, const Tensor& weight_any, const Tensor& scale_any,
                          const Tensor& shift_any, const std::optional<Tensor>& switches_any) {
  const Layer l("deconv3x3_moments", x_any, weight_any, scale_any, shift_any, switches_any);
  Tensor y = empty_map(l.x, {l.maps, l.out_channels, l.height, l.width});
  Tensor mean = empty(l.x, {l.out_channels}, ScalarType::Float), var = empty(l.x, {l.out_channels}, ScalarType::Float);
  Tensor rows = empty(l.x, {l.maps * l.height, 2, padded(l.out_channels)}, ScalarType::Float);
  cpu::deconv3x3_moments({.x = l.x.const_data_ptr(),
                          .weight = floats(l.weight),
                          .scale = floats(l.scale),
                          .shift = floats(l.shift),
                          .switches = l.switch_data(),
                          .y = y.mutable_data_ptr(),
                          .mean = new_floats(mean),
                          .var = new_floats(var),
                          .rows = new_floats(rows),
                          .dtype = l.dtype(),
                          .maps = l.maps,
                          .height = l.height,
                          .width = l.width,
                          .in_channels = l.in_channels,
                          .out_channels = l.out_channels},
                         torch_threads());
  return {y, mean, var};
}

// What the gradients of a layer read and write, but for that of y.
struct LayerBackward {
  Layer l;
  Tensor y, mean, grad_mean, grad_var;
  Tensor grad_x, grad_weight, grad_scale, grad_shift, rows;

  LayerBackward(Layer layer, const Tensor& grad_mean_any, const Tensor& grad_var_any, const Tensor& y_any,
                const Tensor& mean_any)
      : l(std::move(layer)),
        y(like_y("y", y_any)),
        mean(of_outputs("mean", mean_any)),
        grad_mean(of_outputs("grad_mean", grad_mean_any)),
        grad_var(of_outputs("grad_var", grad_var_any)),
        grad_x(empty_map(l.x, shape_of(l.x))),
        // as weight lies: channels_last
        grad_weight(torch::stable::empty(shape_of(l.weight), ScalarType::Float, l.x.layout(), l.x.device(),
                                         std::nullopt, MemoryFormat::ChannelsLast)),
        grad_scale(empty(l.x, {l.in_channels}, ScalarType::Float)),
        grad_shift(empty(l.x, {l.in_channels}, ScalarType::Float)),
        rows(empty(l.x, {l.maps * l.x.size(2), 2, padded(l.in_channels)}, ScalarType::Float)) {
  }

  Tensor like_y(const char* name, const Tensor& t) const {
    check_same_device(l.op, name, t, l.x);
    check_dtype(l.op, name, t, l.x.scalar_type());
    check_shape(l.op, name, t, {l.maps, l.out_channels, l.height, l.width});
    return channels_last(t);
  }
  Tensor of_outputs(const char* name, const Tensor& t) const {
    return float_tensor(l.op, name, t, {l.out_channels}, l.x);
  }
  Deconv3x3MomentsBackwardParams params(const void* grad_y) {
    return {.grad_y = grad_y,
            .grad_mean = floats(grad_mean),
            .grad_var = floats(grad_var),
            .y = y.const_data_ptr(),
            .mean = floats(mean),
            .x = l.x.const_data_ptr(),
            .weight = floats(l.weight),
            .scale = floats(l.scale),
            .shift = floats(l.shift),
            .switches = l.switch_data(),
            .grad_x = grad_x.mutable_data_ptr(),
            .grad_weight = new_floats(grad_weight),
            .grad_scale = new_floats(grad_scale),
            .grad_shift = new_floats(grad_shift),
            .rows = new_floats(rows),
            .dtype = l.dtype(),
            .maps = l.maps,
            .height = l.height,
            .width = l.width,
            .in_channels = l.in_channels,
            .out_channels = l.out_channels};
  }
  LayerGradients gradients() const {
    return {grad_x, grad_weight, grad_scale, grad_shift};
  }
};

LayerGradients deconv3x3_moments_backward(const Tensor& grad_y_any, const Tensor& grad_mean, const Tensor& grad_var,
                                          const Tensor& y, const Tensor& mean, const Tensor& x, const Tensor& weight,
                                          const Tensor& scale, const Tensor& shift,
                                          const std::optional<Tensor>& switches) {
  LayerBackward b(Layer("deconv3x3_moments_backward", x, weight, scale, shift, switches), grad_mean, grad_var, y, mean);
  const Tensor grad_y = b.like_y("grad_y", grad_y_any);
  cpu::deconv3x3_moments_backward(b.params(grad_y.const_data_ptr()), torch_threads());
  return b.gradients();
}

LayerGradients deconv3x3_moments_backward_score(const Tensor& grad_score_any, const Tensor& score_scale_any,
                                                const Tensor& score_shift_any, const Tensor& score_weight_any,
                                                const Tensor& grad_mean, const Tensor& grad_var, const Tensor& y,
                                                const Tensor& mean, const Tensor& x, const Tensor& weight,
                                                const Tensor& scale, const Tensor& shift,
                                                const std::optional<Tensor>& switches) {
  constexpr const char* op = "deconv3x3_moments_backward_score";
  LayerBackward b(Layer(op, x, weight, scale, shift, switches), grad_mean, grad_var, y, mean);
  const Tensor grad_score = score_gradient(op, "grad_score", grad_score_any, b.y);
  const Tensor score_scale = b.of_outputs("score_scale", score_scale_any);
  const Tensor score_shift = b.of_outputs("score_shift", score_shift_any);
  const Tensor score_weight = float_tensor(op, "score_weight", score_weight_any, {2, b.l.out_channels}, b.l.x);
  cpu::deconv3x3_moments_backward_score({.layer = b.params(nullptr),
                                         .grad_score = floats(grad_score),
                                         .score_scale = floats(score_scale),
                                         .score_shift = floats(score_shift),
                                         .score_weight = floats(score_weight)},
                                        torch_threads());
  return b.gradients();
}

Tensor seg_score(const Tensor& x_any, const Tensor& scale_any, const Tensor& shift_any, const Tensor& weight_any,
                 const Tensor& bias_any) {
  constexpr const char* op = "seg_score";
  const Tensor x = training_map(op, "x", x_any);
  const int64_t channels = x.size(1);
  const Tensor scale = float_tensor(op, "scale", scale_any, {channels}, x);
  const Tensor shift = float_tensor(op, "shift", shift_any, {channels}, x);
  const Tensor weight = float_tensor(op, "weight", weight_any, {2, channels}, x);
  const Tensor bias = float_tensor(op, "bias", bias_any, {2}, x);
  Tensor y = torch::stable::empty({x.size(0), 2, x.size(2), x.size(3)}, ScalarType::Float, x.layout(), x.device(),
                                  std::nullopt, MemoryFormat::ChannelsLast);
  cpu::seg_score({.x = x.const_data_ptr(),
                  .scale = floats(scale),
                  .shift = floats(shift),
                  .weight = floats(weight),
                  .bias = floats(bias),
                  .y = new_floats(y),
                  .dtype = x.scalar_type() == ScalarType::Float ? Dtype::float32 : Dtype::bfloat16,
                  .rows = x.size(0) * x.size(2),
                  .width = x.size(3),
                  .channels = channels},
                 torch_threads());
  return y;
}

struct ScoreGradients {
  Tensor scale, shift, weight, bias;
};

// grad_x null: the others alone.
ScoreGradients run_seg_score_backward(const char* op, const Tensor& grad_y_any, const Tensor& x,
                                      const Tensor& scale_any, const Tensor& shift_any, const Tensor& weight_any,
                                      void* grad_x) {
  const int64_t channels = x.size(1);
  const Tensor grad_y = score_gradient(op, "grad_y", grad_y_any, x);
  const Tensor scale = float_tensor(op, "scale", scale_any, {channels}, x);
  const Tensor shift = float_tensor(op, "shift", shift_any, {channels}, x);
  const Tensor weight = float_tensor(op, "weight", weight_any, {2, channels}, x);
  ScoreGradients grad{empty(x, {channels}, ScalarType::Float), empty(x, {channels}, ScalarType::Float),
                      empty(x, {2, channels}, ScalarType::Float), empty(x, {2}, ScalarType::Float)};
  Tensor sums = empty(x, {x.size(0) * x.size(2), 4, padded(channels)}, ScalarType::Float);
  cpu::seg_score_backward({.grad_y = floats(grad_y),
                           .x = x.const_data_ptr(),
                           .scale = floats(scale),
                           .shift = floats(shift),
                           .weight = floats(weight),
                           .grad_x = grad_x,
                           .grad_scale = new_floats(grad.scale),
                           .grad_shift = new_floats(grad.shift),
                           .grad_weight = new_floats(grad.weight),
                           .grad_bias = new_floats(grad.bias),
                           .sums = new_floats(sums),
                           .dtype = x.scalar_type() == ScalarType::Float ? Dtype::float32 : Dtype::bfloat16,
                           .rows = x.size(0) * x.size(2),
                           .width = x.size(3),
                           .channels = channels},
                          torch_threads());
  return grad;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> seg_score_backward(const Tensor& grad_y, const Tensor& x_any,
                                                                      const Tensor& scale, const Tensor& shift,
                                                                      const Tensor& weight) {
  constexpr const char* op = "seg_score_backward";
  const Tensor x = training_map(op, "x", x_any);
  Tensor grad_x = empty_map(x, shape_of(x));
  const ScoreGradients grad = run_seg_score_backward(op, grad_y, x, scale, shift, weight, grad_x.mutable_data_ptr());
  return {grad_x, grad.scale, grad.shift, grad.weight, grad.bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> seg_score_backward_vectors(const Tensor& grad_y, const Tensor& x_any,
                                                                      const Tensor& scale, const Tensor& shift,
                                                                      const Tensor& weight) {
  constexpr const char* op = "seg_score_backward_vectors";
  const Tensor x = training_map(op, "x", x_any);
  const ScoreGradients grad = run_seg_score_backward(op, grad_y, x, scale, shift, weight, nullptr);
  return {grad.scale, grad.shift, grad.weight, grad.bias};
}

}  // namespace
}  // namespace ddn

STABLE_TORCH_LIBRARY_FRAGMENT(ddn_fast, m) {
  m.def(
      "deconv3x3_moments(Tensor x, Tensor weight, Tensor scale, Tensor shift, Tensor? switches=None) -> "
      "(Tensor y, Tensor mean, Tensor var)");
  m.def(
      "deconv3x3_moments_backward(Tensor grad_y, Tensor grad_mean, Tensor grad_var, Tensor y, Tensor mean, Tensor x, "
      "Tensor weight, Tensor scale, Tensor shift, Tensor? switches=None) -> "
      "(Tensor grad_x, Tensor grad_weight, Tensor grad_scale, Tensor grad_shift)");
  m.def(
      "deconv3x3_moments_backward_score(Tensor grad_score, Tensor score_scale, Tensor score_shift, "
      "Tensor score_weight, Tensor grad_mean, Tensor grad_var, Tensor y, Tensor mean, Tensor x, Tensor weight, "
      "Tensor scale, Tensor shift, Tensor? switches=None) -> "
      "(Tensor grad_x, Tensor grad_weight, Tensor grad_scale, Tensor grad_shift)");
  m.def("seg_score(Tensor x, Tensor scale, Tensor shift, Tensor weight, Tensor bias) -> Tensor");
  m.def(
      "seg_score_backward(Tensor grad_y, Tensor x, Tensor scale, Tensor shift, Tensor weight) -> "
      "(Tensor grad_x, Tensor grad_scale, Tensor grad_shift, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "seg_score_backward_vectors(Tensor grad_y, Tensor x, Tensor scale, Tensor shift, Tensor weight) -> "
      "(Tensor grad_scale, Tensor grad_shift, Tensor grad_weight, Tensor grad_bias)");
}

// On CUDA they are put together from torch's own: ddn_fast/training_ops.py registers that.
STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CPU, m) {
  m.impl("deconv3x3_moments", TORCH_BOX(&ddn::deconv3x3_moments));
  m.impl("deconv3x3_moments_backward", TORCH_BOX(&ddn::deconv3x3_moments_backward));
  m.impl("deconv3x3_moments_backward_score", TORCH_BOX(&ddn::deconv3x3_moments_backward_score));
  m.impl("seg_score", TORCH_BOX(&ddn::seg_score));
  m.impl("seg_score_backward", TORCH_BOX(&ddn::seg_score_backward));
  m.impl("seg_score_backward_vectors", TORCH_BOX(&ddn::seg_score_backward_vectors));
}
