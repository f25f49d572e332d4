// conv3x3, conv3x3_max_pool2x2, conv3x3_score: a stage of the network, with its three ends.
#include "torch/launch.h"

namespace ddn {
namespace {

constexpr int64_t kBlock = 32;

int64_t blocks_of(int64_t channels) {
  return (channels + kBlock - 1) / kBlock;
}

// The layout of packed weights for these channels (ddn_fast/packing.py); fails where they have none.
Conv3x3Layout layout_of(const char* op, size_t layer, const Tensor& weight, int64_t in, int64_t out) {
  const int64_t taps = 9 * in <= kBlock ? 1 : 9, rows = taps == 1 ? 1 : blocks_of(in), columns = blocks_of(out);
  const std::vector<int64_t> shape = shape_of(weight);
  const bool floats = weight.scalar_type() == ScalarType::Float;
  const bool halves = weight.scalar_type() == ScalarType::Half && weight.is_cuda();
  if ((weight.scalar_type() == ScalarType::BFloat16 || halves) &&
      shape == std::vector<int64_t>{columns, rows, taps, 2, 16, 16, 2})
    return Conv3x3Layout::pairs;
  if (floats && shape == std::vector<int64_t>{columns, rows, taps, kBlock, kBlock}) return Conv3x3Layout::direct;
  if (floats && taps == 9 && shape == std::vector<int64_t>{columns, 6, 6, rows, kBlock, kBlock})
    return Conv3x3Layout::winograd;
  if (weight.scalar_type() == ScalarType::Short && taps == 9 &&
      shape == std::vector<int64_t>{columns, 6, 6, rows * kBlock / 2 + 1, kBlock, 2})
    return Conv3x3Layout::winograd_int16;
  fail(op, "weights[", layer, "] must be packed by pack_conv3x3 for ", in, " to ", out, " channels, got ",
       torch::headeronly::toString(weight.scalar_type()), " ", text(shape));
}

// A stage's tensors, checked, and what must live as long as the kernel runs.
struct Stage {
  const char* op;
  Dtype dtype;
  Tensor x;
  std::vector<Tensor> kept;
  std::vector<Conv3x3Layer> layers;
  std::optional<Tensor> switches, image_of_pass;
  int64_t height, width;

  Stage(const char* op, const Tensor& x_any, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
        const std::optional<Tensor>& switches_any, const std::optional<Tensor>& image_of_pass_any)
      : op(op), dtype(check_map(op, x_any)), x(x_any) {
    if (x_any.is_cuda() ? dtype != Dtype::bfloat16 && dtype != Dtype::float16
                        : dtype != Dtype::float32 && dtype != Dtype::bfloat16)
      fail(op, "x must be ", x_any.is_cuda() ? "BFloat16 or Half on CUDA" : "Float or BFloat16", ", got ",
           torch::headeronly::toString(x_any.scalar_type()));
    x = channels_last(x_any);
    height = x.size(2), width = x.size(3);
    if (switches_any) {
      check_switches(op, x, height, width, *switches_any, image_of_pass_any);
      switches = torch::stable::contiguous(*switches_any);
      image_of_pass = contiguous(image_of_pass_any);
      if (x.is_cpu()) check_range(op, indices_of(image_of_pass), x.size(0), switches->size(0));
      height *= 2, width *= 2;
    } else if (image_of_pass_any) {
      fail(op, "image_of_pass must be None where switches are, got a tensor");
    }
    add_layers(weights, biases);
  }

  void add_layers(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
    if (weights.empty() || weights.size() != biases.size() || static_cast<int64_t>(weights.size()) > kMaxConv3x3Layers)
      fail(op, "weights and biases must be lists of 1 to ", kMaxConv3x3Layers, " layers, got ", weights.size(), " and ",
           biases.size());
    int64_t channels = x.size(1);
    for (size_t l = 0; l < weights.size(); ++l) {
      const std::string name = "biases[" + std::to_string(l) + "]";
      check_same_device(op, "weights", weights[l], x);
      check_same_device(op, "biases", biases[l], x);
      check_dtype(op, name.c_str(), biases[l], ScalarType::Float);
      if (biases[l].dim() != 1 || biases[l].size(0) < 1)
        fail(op, name, " must be [O] with O at least 1, got ", text(shape_of(biases[l])));
      const int64_t out = biases[l].size(0);
      const Conv3x3Layout layout = layout_of(op, l, weights[l], channels, out);
      if (x.is_cuda() && (layout != Conv3x3Layout::pairs || weights[l].scalar_type() != x.scalar_type()))
        fail(op, "weights[", l, "] must be in the pairs layout and of x's dtype on CUDA, got ",
             torch::headeronly::toString(weights[l].scalar_type()), " ", text(shape_of(weights[l])));
      if (l > 0 && 9 * channels <= kBlock)
        fail(op, "weights[", l, "] must have at least 4 input channels, got ", channels);
      kept.push_back(torch::stable::contiguous(weights[l]));
      if (x.is_cuda() && reinterpret_cast<uintptr_t>(kept.back().const_data_ptr()) % 16)  // what its copies ask for
        kept.back() = torch::stable::clone(kept.back());
      kept.push_back(torch::stable::contiguous(biases[l]));
      layers.push_back({kept[kept.size() - 2].const_data_ptr(), static_cast<const float*>(kept.back().const_data_ptr()),
                        layout, channels, out});
      channels = out;
    }
    if (switches && 9 * x.size(1) <= kBlock)
      fail(op, "x must have at least 4 channels to be unpooled, got ", x.size(1));
  }

  int64_t out_channels() const {
    return layers.back().out_channels;
  }

  Conv3x3Params params() const {
    Conv3x3Params p{};
    p.x = x.const_data_ptr();
    p.switches = switches ? static_cast<const uint8_t*>(switches->const_data_ptr()) : nullptr;
    p.image_of_pass = indices_of(image_of_pass);
    p.layers = layers.data();
    p.layer_count = static_cast<int64_t>(layers.size());
    p.dtype = dtype;
    p.maps = x.size(0);
    p.height = height;
    p.width = width;
    p.images = switches ? switches->size(0) : 0;
    return p;
  }

  void run(const Conv3x3Params& p) const {
    if (x.is_cpu())
      cpu::conv3x3(p, torch_threads());
    else
      run_on_cuda<Conv3x3Params>(op, DDN_CUDA_KERNEL(conv3x3), DDN_CUDA_KERNEL(conv3x3_workspace_bytes), p, x);
  }
};

using Tensors = std::vector<Tensor>;

Tensor conv3x3(const Tensor& x, const Tensors& weights, const Tensors& biases, const std::optional<Tensor>& switches,
               const std::optional<Tensor>& image_of_pass) {
  const auto on_device = guard(x);
  const Stage stage("conv3x3", x, weights, biases, switches, image_of_pass);
  Tensor y = empty_map(stage.x, {stage.x.size(0), stage.out_channels(), stage.height, stage.width});
  Conv3x3Params p = stage.params();
  p.y = y.mutable_data_ptr();
  stage.run(p);
  return y;
}

std::tuple<Tensor, Tensor> conv3x3_max_pool2x2(const Tensor& x, const Tensors& weights, const Tensors& biases,
                                               const std::optional<Tensor>& switches,
                                               const std::optional<Tensor>& image_of_pass) {
  constexpr const char* op = "conv3x3_max_pool2x2";
  const auto on_device = guard(x);
  Stage stage(op, x, weights, biases, switches, image_of_pass);
  for (Conv3x3Layer& layer : stage.layers) layer.keep_ties = stage.dtype == Dtype::float32;  // the first of them wins
  if (stage.height % 2 || stage.width % 2) fail(op, "x must have an even height and width, got ", text(shape_of(x)));
  const int64_t maps = stage.x.size(0), h = stage.height / 2, w = stage.width / 2, channels = stage.out_channels();
  Tensor y = empty_map(stage.x, {maps, channels, h, w});
  Tensor y_switches = empty(stage.x, {maps, h, w, switch_bytes(channels)}, ScalarType::Byte);
  Conv3x3Params p = stage.params();
  p.y = y.mutable_data_ptr();
  p.y_switches = static_cast<uint8_t*>(y_switches.mutable_data_ptr());
  stage.run(p);
  return {y, y_switches};
}

Tensor conv3x3_score(const Tensor& x, const Tensors& weights, const Tensors& biases, const Tensor& score_weight,
                     const Tensor& score_bias, const std::optional<Tensor>& switches,
                     const std::optional<Tensor>& image_of_pass) {
  constexpr const char* op = "conv3x3_score";
  const auto on_device = guard(x);
  const Stage stage(op, x, weights, biases, switches, image_of_pass);
  check_same_device(op, "score_weight", score_weight, x);
  check_same_device(op, "score_bias", score_bias, x);
  check_dtype(op, "score_weight", score_weight, ScalarType::Float);
  check_dtype(op, "score_bias", score_bias, ScalarType::Float);
  check_shape(op, "score_weight", score_weight, {stage.out_channels()});
  check_shape(op, "score_bias", score_bias, {1});
  const Tensor weight = torch::stable::contiguous(score_weight);
  Tensor score = empty(stage.x, {stage.x.size(0), stage.height, stage.width}, ScalarType::Float);
  Conv3x3Params p = stage.params();
  p.score = static_cast<float*>(score.mutable_data_ptr());
  p.score_weight = static_cast<const float*>(weight.const_data_ptr());
  p.score_bias = static_cast<const float*>(score_bias.const_data_ptr());
  stage.run(p);
  return score;
}

}  // namespace
}  // namespace ddn

STABLE_TORCH_LIBRARY_FRAGMENT(ddn_fast, m) {
  m.def(
      "conv3x3(Tensor x, Tensor[] weights, Tensor[] biases, Tensor? switches=None, Tensor? image_of_pass=None) -> "
      "Tensor");
  m.def(
      "conv3x3_max_pool2x2(Tensor x, Tensor[] weights, Tensor[] biases, Tensor? switches=None, "
      "Tensor? image_of_pass=None) -> (Tensor y, Tensor switches)");
  m.def(
      "conv3x3_score(Tensor x, Tensor[] weights, Tensor[] biases, Tensor score_weight, Tensor score_bias, "
      "Tensor? switches=None, Tensor? image_of_pass=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&ddn::conv3x3));
  m.impl("conv3x3_max_pool2x2", TORCH_BOX(&ddn::conv3x3_max_pool2x2));
  m.impl("conv3x3_score", TORCH_BOX(&ddn::conv3x3_score));
}

STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CUDA, m) {
  m.impl("conv3x3", TORCH_BOX(&ddn::conv3x3));
  m.impl("conv3x3_max_pool2x2", TORCH_BOX(&ddn::conv3x3_max_pool2x2));
  m.impl("conv3x3_score", TORCH_BOX(&ddn::conv3x3_score));
}
