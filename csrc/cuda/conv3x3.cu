// conv3x3: the layers of a stage, one launch each; conv3x3.cuh holds the portable kernel, conv3x3_wgmma.cuh that of
// sm_90a, and by_wgmma() says which layers are whose. Between layers maps lie in the workspace:
//   [counters of the tiles in slices | sums of the slices | up to two maps, in turn].
#include <algorithm>
#include <vector>

#include "cuda/conv3x3_layer.cuh"
#include "cuda/isa.h"

namespace ddn {

// The end of a stage whose last layer has more outputs than a tile: score[n,i,j] = b + sum over o of y[n,i,j,o] * w[o].
// Thread map: one per pixel. Bytes: y read once.
struct ScorePixelsLaunch {
  const uint16_t* y;  // [pixels,O]
  const float* weight;
  const float* bias;
  float* score;  // [pixels]
  int64_t pixels;
  int channels;
};

template <class T>
DDN_GLOBAL void score_pixels_kernel(const ScorePixelsLaunch p) {
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pixel >= p.pixels) return;
  const uint16_t* y = p.y + pixel * p.channels;
  float sum = p.bias[0];
  for (int c = 0; c < p.channels; ++c) sum += widen<T>(y[c]) * p.weight[c];
  p.score[pixel] = sum;
}

namespace cuda {
namespace {

constexpr int64_t kAlignment = 256, kBlock = 32;

bool is_aligned(const void* at, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(at) % bytes == 0;
}

// How a stage is run on a device of so many multiprocessors with these instructions, and what it needs.
class Stage {
 public:
  Stage(const Conv3x3Params& p, int multiprocessors, Isa isa) : p_(p), multiprocessors_(multiprocessors), isa_(isa) {
    int64_t counters = 0, sums = 0, map = 0;
    for (int64_t l = 0; l < p.layer_count; ++l) {
      const Conv3x3Layer& layer = p.layers[l];
      plans_.push_back(make_plan(l));
      const Conv3x3Plan& plan = plans_.back();
      const Conv3x3TileSize& size = tile_size(plan.kind);
      fits_ &= plan.tiles(p.maps) <= INT32_MAX;
      fits_ &= p.height * p.width <= INT32_MAX / std::max(layer.in_channels, layer.out_channels);
      fits_ &= layer.layout == Conv3x3Layout::pairs;
      if (plan.slices > 1) {
        const int64_t tiles = plan.tiles(p.maps);
        counters = std::max(counters, tiles);
        sums = std::max(sums, tiles * plan.slices * size.windows * 4 * size.outputs);
      }
      if (ends_in_y(l)) continue;
      map = std::max(map, p.maps * p.height * p.width * layer.out_channels);
      map_count_ = std::min(map_count_ + 1, 2);
    }
    counter_bytes_ = rounded(counters * 4), sum_bytes_ = rounded(sums * 4);
    map_bytes_ = rounded(map * 2);
  }

  bool fits() const {
    return fits_;
  }
  int64_t bytes() const {
    return counter_bytes_ + sum_bytes_ + map_count_ * map_bytes_;
  }

  int run(Stream stream) const {
    char* const memory = static_cast<char*>(p_.workspace);
    char* const maps[] = {memory + counter_bytes_ + sum_bytes_, memory + counter_bytes_ + sum_bytes_ + map_bytes_};
    const void* x = p_.x;
    for (int64_t l = 0; l < p_.layer_count; ++l) {
      Conv3x3Launch launch = launch_of(l, x);
      const Conv3x3Plan& plan = plans_[static_cast<size_t>(l)];
      if (plan.slices > 1) {
        launch.arrived = reinterpret_cast<unsigned*>(memory);
        launch.sums = reinterpret_cast<float*>(memory + counter_bytes_);
        if (const cudaError_t error = set_zero(memory, static_cast<size_t>(plan.tiles(p_.maps) * 4), stream))
          return error;
      }
      if (!ends_in_y(l)) launch.y = reinterpret_cast<uint16_t*>(maps[l % 2]);
      launch.wide_output = launch.out_channels % 8 == 0 && is_aligned(launch.y, 16);
      if (const int error = run_layer(launch, plan, input_of(l), stream)) return error;
      x = launch.y;
    }
    return p_.score && !score_in_kernel() ? score_pixels(x, stream) : cudaSuccess;
  }

 private:
  static int64_t rounded(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  static bool is_image(const Conv3x3Layer& layer) {
    return 9 * layer.in_channels <= kBlock;
  }

  int run_layer(const Conv3x3Launch& launch, const Conv3x3Plan& plan, Conv3x3Input input, Stream stream) const {
    const int maps = static_cast<int>(p_.maps);
    const bool bfloat16 = p_.dtype == Dtype::bfloat16;
#ifdef DDN_HAVE_WGMMA
    if (is_wgmma(plan.kind))
      return (bfloat16 ? conv3x3_wgmma_layer_bfloat16 : conv3x3_wgmma_layer_float16)(launch, plan, maps, stream);
#endif
    return (bfloat16 ? conv3x3_layer_bfloat16 : conv3x3_layer_float16)(launch, plan, input, maps, stream);
  }

  // The kernel of sm_90a takes channels in eights, of pooled maps in blocks of 32, at aligned addresses.
  bool by_wgmma(int64_t l) const {
    const Conv3x3Layer& layer = p_.layers[l];
    if (isa_ != Isa::wgmma || is_image(layer) || layer.in_channels % 8 || layer.out_channels % 8) return false;
    if (l == 0 && !is_aligned(p_.x, 16)) return false;
    if (l == 0 && p_.switches && (layer.in_channels % 32 || !is_aligned(p_.switches, 8))) return false;
    if (!ends_in_y(l)) return true;
    return p_.score ? layer.out_channels <= tile_size(Conv3x3TileKind::tall).outputs : is_aligned(p_.y, 16);
  }
  Conv3x3Input input_of(int64_t l) const {
    if (l == 0 && p_.switches) return Conv3x3Input::pooled;
    return is_image(p_.layers[l]) ? Conv3x3Input::image : Conv3x3Input::map;
  }
  Conv3x3Plan make_plan(int64_t l) const {
    const Conv3x3Layer& layer = p_.layers[l];
    const bool image = is_image(layer);
    if (by_wgmma(l))
      return plan_conv3x3_wgmma(p_.maps, p_.height, p_.width, layer.out_channels, plan::up(layer.in_channels, kBlock),
                                multiprocessors_);
    Conv3x3Plan plan = plan_conv3x3(p_.maps, p_.height, p_.width, layer.out_channels,
                                    image ? 1 : plan::up(layer.in_channels, kBlock), image ? 1 : 9, multiprocessors_);
    if (l == p_.layer_count - 1 && p_.score && plan.out_tiles > 1 && score_in_kernel())
      plan = plan_conv3x3_of(Conv3x3TileKind::large, p_.height, p_.width, layer.out_channels);
    return plan;
  }
  // A scored layer's outputs lie in one tile where the widest tile that its input has can hold them.
  bool score_in_kernel() const {
    const Conv3x3Layer& layer = p_.layers[p_.layer_count - 1];
    return layer.out_channels <= tile_size(is_image(layer) ? Conv3x3TileKind::narrow : Conv3x3TileKind::large).outputs;
  }
  bool ends_in_y(int64_t l) const {
    return l == p_.layer_count - 1 && (!p_.score || score_in_kernel());
  }

  Conv3x3Launch launch_of(int64_t l, const void* x) const {
    const Conv3x3Layer& layer = p_.layers[l];
    const Conv3x3Plan& plan = plans_[static_cast<size_t>(l)];
    const bool last = l == p_.layer_count - 1;
    Conv3x3Launch launch{};
    launch.x = static_cast<const uint16_t*>(x);
    launch.switches = l == 0 ? p_.switches : nullptr;
    launch.image_of_pass = p_.image_of_pass;
    launch.weight = static_cast<const uint32_t*>(layer.weight);
    launch.bias = layer.bias;
    launch.y = last ? static_cast<uint16_t*>(p_.y) : nullptr;
    launch.y_switches = last ? p_.y_switches : nullptr;
    launch.score = last && score_in_kernel() ? p_.score : nullptr;
    launch.score_weight = p_.score_weight;
    launch.score_bias = p_.score_bias;
    launch.images = p_.images;
    launch.height = static_cast<int>(p_.height);
    launch.width = static_cast<int>(p_.width);
    launch.in_channels = static_cast<int>(layer.in_channels);
    launch.out_channels = static_cast<int>(layer.out_channels);
    launch.in_blocks = is_image(layer) ? 1 : static_cast<int>(plan::up(layer.in_channels, kBlock));
    launch.rows = plan.rows, launch.columns = plan.columns, launch.pitch = plan.pitch();
    launch.tile_rows = plan.tile_rows, launch.tile_columns = plan.tile_columns;
    launch.out_tiles = plan.out_tiles, launch.slices = plan.slices;
    launch.wide_input = layer.in_channels % 8 == 0 && is_aligned(x, 16);
    launch.wide_switches = layer.in_channels % 32 == 0 && is_aligned(p_.switches, 8);
    return launch;
  }

  int score_pixels(const void* y, Stream stream) const {
    constexpr int kThreads = 256;
    const ScorePixelsLaunch launch{static_cast<const uint16_t*>(y),
                                   p_.score_weight,
                                   p_.score_bias,
                                   p_.score,
                                   p_.maps * p_.height * p_.width,
                                   static_cast<int>(p_.layers[p_.layer_count - 1].out_channels)};
    const int64_t blocks = plan::up(launch.pixels, kThreads);
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    if (p_.dtype == Dtype::bfloat16)
      DDN_LAUNCH(score_pixels_kernel<BFloat16>, static_cast<unsigned>(blocks), kThreads, stream, launch);
    else
      DDN_LAUNCH(score_pixels_kernel<Float16>, static_cast<unsigned>(blocks), kThreads, stream, launch);
    return cudaGetLastError();
  }

  const Conv3x3Params& p_;
  int multiprocessors_;
  Isa isa_;
  std::vector<Conv3x3Plan> plans_;
  int64_t counter_bytes_ = 0, sum_bytes_ = 0, map_bytes_ = 0;
  int map_count_ = 0;  // layer l's result lies in map l % 2
  bool fits_ = true;
};

}  // namespace

int64_t conv3x3_workspace_bytes(const Conv3x3Params& p) {
  int count = 0;
  Isa found{};
  if (multiprocessors(count) || isa(found)) return 0;  // conv3x3 tells the error
  const Stage stage(p, count, found);
  return stage.fits() ? stage.bytes() : -1;
}

int conv3x3(const Conv3x3Params& p, Stream stream) {
  if (p.dtype != Dtype::bfloat16 && p.dtype != Dtype::float16) return cudaErrorInvalidValue;
  if (p.maps == 0) return cudaSuccess;
  int count = 0;
  Isa found{};
  if (const cudaError_t error = multiprocessors(count)) return error;
  if (const int error = isa(found)) return error;
  const Stage stage(p, count, found);
  const bool ready = stage.fits() && (stage.bytes() == 0 || p.workspace);
  return ready ? stage.run(stream) : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace ddn
