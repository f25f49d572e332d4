// The convolution's real layers: every kernel and tile against the plain formula in float32, and its time.
#pragma once
#include <cmath>
#include <string>

#include <memory>
#include <type_traits>
#include "cuda/conv3x3_layer.cuh"
#include "oracle.cuh"

#include "timing.cuh"

namespace ddn::probe {

struct LayerResult;

// The program's own: what is begun, for the case that it hangs; what came of it.
void begin(const char* name);
void report(const LayerResult& result);

enum class End { map, pooled, score };

struct Layer {
  const char* name;
  int side, in, out;
  bool unpool;
  End end;
  int times;  // that it occurs in the network
  bool decoder;
};

// All of the network but its first, of three channels.
constexpr Layer kLayers[] = {
    {"conv1_2", 320, 64, 64, false, End::pooled, 1, false},   {"conv2_1", 160, 64, 128, false, End::map, 1, false},
    {"conv2_2", 160, 128, 128, false, End::pooled, 1, false}, {"conv3_1", 80, 128, 256, false, End::map, 1, false},
    {"conv3_2", 80, 256, 256, false, End::map, 1, false},     {"conv3_3", 80, 256, 256, false, End::pooled, 1, false},
    {"conv4_1", 40, 256, 512, false, End::map, 1, false},     {"conv4_2", 40, 512, 512, false, End::map, 1, false},
    {"conv4_3", 40, 512, 512, false, End::pooled, 1, false},  {"conv5_1", 20, 512, 512, false, End::map, 2, false},
    {"conv5_3", 20, 512, 512, false, End::pooled, 1, false},  {"deconv5_1", 20, 512, 512, true, End::map, 1, true},
    {"deconv5_2", 20, 512, 512, false, End::map, 2, true},    {"deconv4_1", 40, 512, 512, true, End::map, 1, true},
    {"deconv4_2", 40, 512, 512, false, End::map, 1, true},    {"deconv4_3", 40, 512, 256, false, End::map, 1, true},
    {"deconv3_1", 80, 256, 256, true, End::map, 1, true},     {"deconv3_2", 80, 256, 256, false, End::map, 1, true},
    {"deconv3_3", 80, 256, 128, false, End::map, 1, true},    {"deconv2_1", 160, 128, 128, true, End::map, 1, true},
    {"deconv2_2", 160, 128, 64, false, End::map, 1, true},    {"deconv1_1", 320, 64, 64, true, End::map, 1, true},
    {"deconv1_2", 320, 64, 64, false, End::score, 1, true},
};

#ifdef DDN_EMU
constexpr unsigned kCompareBlocks = 2;
#else
constexpr unsigned kCompareBlocks = 1024;
#endif
constexpr const char* kKinds[] = {"mma large", "mma narrow", "mma small", "wgmma tall", "wgmma wide", "wgmma compact"};

// One layer's tensors: random values of -1 to 1, half of them zeros as after a ReLU.
template <class T>
class LayerCase {
 public:
  LayerCase(const Layer& layer, int maps, int multiprocessors)
      : layer_(layer),
        maps_(maps),
        images_((maps + 1) / 2),
        x_(elements(layer.unpool ? layer.side / 2 : layer.side, layer.in, maps)),
        weight_(static_cast<size_t>(layer.in) * layer.out * 9),
        switches_(elements(layer.side / 2, layer.in / 4, images_)),
        image_of_pass_(images_of_passes()),
        bias_(static_cast<size_t>(layer.out)),
        score_weight_(static_cast<size_t>(layer.out)),
        score_bias_(1),
        y_(elements(layer.end == End::pooled ? layer.side / 2 : layer.side, layer.out, maps)),
        y_switches_(elements(layer.side / 2, layer.out / 4, maps)),
        score_(elements(layer.side, 1, maps)),
        sums_(static_cast<size_t>(2 * multiprocessors) * 320 * 64),
        arrived_(static_cast<size_t>(2 * multiprocessors)) {
    randomize<T>(x_, 1, 1, true);
    randomize<T>(weight_, 2, 3 / std::sqrt(9.0f * static_cast<float>(layer.in)));
    randomize<T>(switches_, 3);
    randomize<T>(bias_, 4), randomize<T>(score_weight_, 5), randomize<T>(score_bias_, 6);
  }

  int blocks() const {
    return layer_.in / 32;
  }
  double flop() const {
    return 18.0 * layer_.side * layer_.side * layer_.in * layer_.out * maps_;
  }

  Conv3x3Launch launch(const Conv3x3Plan& plan) const {
    Conv3x3Launch p{};
    p.x = x_.at(), p.switches = layer_.unpool ? switches_.at() : nullptr, p.image_of_pass = image_of_pass_.at();
    p.weight = reinterpret_cast<const uint32_t*>(weight_.at()), p.bias = bias_.at();
    p.y = layer_.end == End::score ? nullptr : y_.at();
    p.y_switches = layer_.end == End::pooled ? y_switches_.at() : nullptr;
    p.score = layer_.end == End::score ? score_.at() : nullptr;
    p.score_weight = score_weight_.at(), p.score_bias = score_bias_.at();
    p.sums = sums_.at(), p.arrived = arrived_.at();
    p.images = images_, p.height = p.width = layer_.side;
    p.in_channels = layer_.in, p.out_channels = layer_.out, p.in_blocks = blocks();
    p.rows = plan.rows, p.columns = plan.columns, p.pitch = plan.pitch();
    p.tile_rows = plan.tile_rows, p.tile_columns = plan.tile_columns;
    p.out_tiles = plan.out_tiles, p.slices = plan.slices;
    p.wide_input = p.wide_output = p.wide_switches = true;
    return p;
  }

  void run(const Conv3x3Plan& plan) const {
    using namespace ddn::cuda;
    constexpr bool kBFloat16 = std::is_same_v<T, BFloat16>;
    const Conv3x3Launch p = launch(plan);
    if (plan.slices > 1)
      require_success(set_zero(arrived_.at(), static_cast<size_t>(plan.tiles(maps_)) * 4, nullptr), "memset");
    const auto input = layer_.unpool ? Conv3x3Input::pooled : Conv3x3Input::map;
    const int error =
        is_wgmma(plan.kind)
            ? (kBFloat16 ? conv3x3_wgmma_layer_bfloat16 : conv3x3_wgmma_layer_float16)(p, plan, maps_, nullptr)
            : (kBFloat16 ? conv3x3_layer_bfloat16 : conv3x3_layer_float16)(p, plan, input, maps_, nullptr);
    require_success(error, layer_.name);
  }

  // The plain formula's result, before pooling or scoring.
  void make_oracle() {
    full_ = std::make_unique<DeviceArray<float>>(elements(layer_.side, layer_.out, maps_));
    const Conv3x3Launch p = launch(Conv3x3Plan{});
    const OracleLaunch oracle{p, full_->at(), static_cast<int64_t>(full_->count())};
    DDN_LAUNCH(oracle_kernel<T>, static_cast<unsigned>((full_->count() + 127) / 128), 128, nullptr, oracle);
    finish("the oracle");
  }

  // Relative error of the plan's result, or what is wrong with it.
  std::string check(const Conv3x3Plan& plan, double& error) {
    y_.fill(0xff), y_switches_.fill(0xff), score_.fill(0xff), sums_.fill(0xff);
    run(plan);
    finish(layer_.name);
    DeviceArray<Difference> difference(1);
    difference.fill(0);
    const int64_t count = static_cast<int64_t>(layer_.end == End::score ? score_.count() : y_.count());
    const CompareLaunch compare{launch(plan), full_->at(), count, difference.at()};
    DDN_LAUNCH(compare_kernel<T>, kCompareBlocks, 256, nullptr, compare);
    finish("the comparison");
    const Difference found = difference.values()[0];
    error = std::sqrt(found.squares / found.wanted);
    const double most = layer_.end == End::score ? 1e-4 : std::is_same_v<T, BFloat16> ? 4e-3 : 6e-4;
    if (found.wrong) return std::to_string(found.wrong) + " values are NaN, or switches wrong";
    return error < most ? "" : "differs";
  }

 private:
  static size_t elements(int side, int channels, int maps) {
    return static_cast<size_t>(side) * side * channels * maps;
  }
  std::vector<int64_t> images_of_passes() const {
    std::vector<int64_t> images;
    for (int pass = 0; pass < maps_; ++pass) images.push_back(pass * 7 % images_);
    return images;
  }

  Layer layer_;
  int maps_, images_;
  DeviceArray<uint16_t> x_, weight_;
  DeviceArray<uint8_t> switches_;
  DeviceArray<int64_t> image_of_pass_;
  DeviceArray<float> bias_, score_weight_, score_bias_;
  DeviceArray<uint16_t> y_;
  DeviceArray<uint8_t> y_switches_;
  DeviceArray<float> score_, sums_;
  DeviceArray<unsigned> arrived_;
  std::unique_ptr<DeviceArray<float>> full_;
};

struct LayerResult {
  const Layer* layer;
  const char* dtype;
  int maps;
  const char* kind;
  int slices;
  bool chosen;     // by the plan
  double error;    // relative; below 0 where it was not checked
  double seconds;  // 0 where it was not timed
  double teraflops;
  std::string fault;
};

// The plans to try: what either kernel would choose, and each tile of sm_90a's whole.
inline std::vector<Conv3x3Plan> plans_of(const Layer& layer, int maps, int multiprocessors) {
  const int blocks = layer.in / 32;
  Conv3x3Plan mma = plan_conv3x3(maps, layer.side, layer.side, layer.out, blocks, 9, multiprocessors);
  std::vector<Conv3x3Plan> plans = {
      plan_conv3x3_wgmma(maps, layer.side, layer.side, layer.out, blocks, multiprocessors), mma};
  for (const auto kind : {Conv3x3TileKind::tall, Conv3x3TileKind::wide, Conv3x3TileKind::compact})
    if (kind != plans[0].kind || plans[0].slices > 1)
      plans.push_back(plan_conv3x3_of(kind, layer.side, layer.side, layer.out));
  return plans;
}

template <class T>
void try_layer(const Layer& layer, const char* dtype, int maps, bool check, std::vector<LayerResult>& results) {
  begin(layer.name);
  int count = 0;
  require_success(multiprocessors(count), "multiprocessors");
  LayerCase<T> test(layer, maps, count);
  if (check) test.make_oracle();
  const std::vector<Conv3x3Plan> plans = plans_of(layer, maps, count);
  for (size_t k = 0; k < plans.size(); ++k) {
    LayerResult r{&layer, dtype, maps, kKinds[static_cast<int>(plans[k].kind)], plans[k].slices, k == 0, -1, 0, 0, ""};
    if (check) r.fault = test.check(plans[k], r.error);
    r.seconds = seconds_of([&] { test.run(plans[k]); });
    r.teraflops = test.flop() / r.seconds * 1e-12;
    report(r);
    results.push_back(r);
  }
}

// Seconds of the whole network's layers at so many maps, by the chosen plans or by those of one kernel's name.
inline double total_of(const std::vector<LayerResult>& results, int maps, bool decoder, const char* kernel) {
  double seconds = 0;
  for (const Layer& layer : kLayers) {
    double best = 0;
    for (const LayerResult& r : results)
      if (r.layer == &layer && r.maps == maps && layer.decoder == decoder && std::string(r.dtype) == "bfloat16" &&
          (kernel ? std::string(r.kind).find(kernel) == 0 : r.chosen) && (best == 0 || r.seconds < best))
        best = r.seconds;
    seconds += best * layer.times;
  }
  return seconds;
}

inline double flop_of(int maps, bool decoder) {
  double flop = 0;
  for (const Layer& l : kLayers)
    if (l.decoder == decoder) flop += 18.0 * l.side * l.side * l.in * l.out * l.times * maps;
  return flop;
}

inline std::vector<LayerResult> measure_layers() {
  std::vector<LayerResult> results;
  for (const Layer& layer : kLayers)
    for (const int maps : {1, 3, 8, 32}) try_layer<BFloat16>(layer, "bfloat16", maps, maps <= 3, results);
  for (const Layer& layer : kLayers)
    if (layer.end != End::map || layer.unpool) try_layer<Float16>(layer, "float16", 3, true, results);
  for (const int maps : {1, 8, 32})
    for (const bool decoder : {false, true})
      for (const char* const kernel : {static_cast<const char*>(nullptr), "wgmma", "mma"}) {
        const double seconds = total_of(results, maps, decoder, kernel);
        std::printf("%s at %2d, %-18s %9.1f us %6.0f TFLOP/s\n", decoder ? "decoder" : "encoder", maps,
                    kernel ? (std::string("best ") + kernel).c_str() : "as planned", seconds * 1e6,
                    flop_of(maps, decoder) / seconds * 1e-12);
      }
  std::fflush(stdout);
  return results;
}

}  // namespace ddn::probe
