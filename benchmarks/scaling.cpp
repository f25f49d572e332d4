// How the network's stages would scale with threads, measured on one: the shares of each parallel loop run one after
// the other, and the longest counts. What that leaves out is what threads do to each other: memory, caches, waiting.
// Prints JSON rows: stage, maps, threads, the sum of the longest shares and of all, in milliseconds of processor time
// (the best of several tries).
//
//   scaling SIDE TRIES MAPS,MAPS .. THREADS,THREADS ..
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/conv3x3.h"

using namespace ddn;

namespace {

std::mt19937 rng(1);

double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Shares {
  int64_t threads;
  double longest = 0, all = 0;
} shares;

void in_turn(int64_t count, cpu::Parallel::Body body, void* context) {
  const int64_t each = (count + shares.threads - 1) / shares.threads;
  double longest = 0;
  for (int64_t begin = 0; begin < count; begin += each) {
    const double start = seconds();
    body(context, begin, std::min(count, begin + each));
    const double took = seconds() - start;
    longest = std::max(longest, took), shares.all += took;
  }
  shares.longest += longest;
}

struct Stage {
  const char* name;
  std::vector<int64_t> channels;
  int64_t by;  // of the image's side, how many times smaller its maps are
  bool encoder;
};

// All but the first layer of the network, which is none of its Winograd's.
const Stage kStages[] = {
    {"conv1", {64, 64}, 1, true},
    {"conv2", {64, 128, 128}, 2, true},
    {"conv3", {128, 256, 256, 256}, 4, true},
    {"conv4", {256, 512, 512, 512}, 8, true},
    {"conv5", {512, 512, 512, 512}, 16, true},
    {"deconv5", {512, 512, 512, 512}, 16, false},
    {"deconv4", {512, 512, 512, 256}, 8, false},
    {"deconv3", {256, 256, 256, 128}, 4, false},
    {"deconv2", {128, 128, 64}, 2, false},
    {"deconv1", {64, 64, 64}, 1, false},
};

// A stage of the bfloat16 engine with values whose size stays about 1.
class Case {
 public:
  Case(const Stage& stage, int64_t side, int64_t maps) : maps_(maps), side_(side / stage.by), encoder_(stage.encoder) {
    for (size_t l = 0; l + 1 < stage.channels.size(); ++l) add_layer(stage.channels[l], stage.channels[l + 1]);
    for (const Layer& layer : made_)
      layers_.push_back({layer.weight.data(), layer.bias.data(), Conv3x3Layout::winograd_int16, layer.in_channels,
                         layer.out_channels});
    const int64_t in = stage.channels.front(), out = stage.channels.back(), in_side = encoder_ ? side_ : side_ / 2;
    const int64_t pixels = maps * side_ * side_, in_pixels = maps * in_side * in_side;
    for (int64_t k = 0; k < in_pixels * in; ++k) x_.push_back(rng() % 2 ? 0x3f00 + rng() % 0x80 : 0);
    if (!encoder_)
      for (int64_t k = 0; k < in_pixels * in / 4; ++k) switches_.push_back(static_cast<uint8_t>(rng()));
    y_.resize(static_cast<size_t>(pixels * out));
    y_switches_.resize(static_cast<size_t>(encoder_ ? pixels * out / 16 : 0));
  }

  // Milliseconds: of the longest shares, and of all.
  Shares run(int64_t threads, int tries) {
    Conv3x3Params p{};
    p.x = x_.data();
    p.switches = encoder_ ? nullptr : switches_.data();
    p.layers = layers_.data();
    p.layer_count = static_cast<int64_t>(layers_.size());
    p.dtype = Dtype::bfloat16;
    p.maps = p.images = maps_;
    p.height = p.width = side_;
    p.y = y_.data();
    p.y_switches = encoder_ ? y_switches_.data() : nullptr;
    Shares best{threads, std::numeric_limits<double>::max(), 0};
    for (int k = 0; k < tries; ++k) {
      shares = {threads};
      cpu::conv3x3_plain(p, {in_turn, threads});
      if (shares.longest < best.longest) best = shares;
    }
    return {threads, 1e3 * best.longest, 1e3 * best.all};
  }

 private:
  struct Layer {
    int64_t in_channels, out_channels;
    std::vector<int16_t> weight;
    std::vector<float> bias;
  };

  // The winograd_int16 layout (params.h): whole numbers, then scales that make sums of them about 1.
  void add_layer(int64_t in, int64_t out) {
    constexpr int kLargest = 300;
    const int64_t kernel = (in / 2 + 1) * 64;
    std::vector<int16_t> weight(static_cast<size_t>(out / 32 * 36 * kernel));
    for (int16_t& value : weight) value = static_cast<int16_t>(static_cast<int>(rng() % (2 * kLargest + 1)) - kLargest);
    const float scale = 1 / (9000.0f * kLargest * std::sqrt(static_cast<float>(in)));
    for (int64_t k = 0; k < out / 32 * 36; ++k)
      for (int64_t o = 0; o < 32; ++o)
        std::memcpy(weight.data() + k * kernel + in / 2 * 64 + 2 * o, &scale, sizeof scale);
    made_.push_back({in, out, std::move(weight), std::vector<float>(static_cast<size_t>(out), 0.1f)});
  }

  int64_t maps_, side_;
  bool encoder_;
  std::vector<Layer> made_;
  std::vector<Conv3x3Layer> layers_;
  std::vector<uint16_t> x_, y_;
  std::vector<uint8_t> switches_, y_switches_;
};

std::vector<int64_t> numbers(const char* text) {
  std::vector<int64_t> found;
  for (const char* at = text; *at;) {
    char* end;
    found.push_back(std::strtoll(at, &end, 10));
    at = *end ? end + 1 : end;
  }
  return found;
}

}  // namespace

int main(int, char** arguments) {
  const char* between = "[";
  for (const int64_t maps : numbers(arguments[3]))
    for (const Stage& stage : kStages) {
      Case one(stage, std::atoll(arguments[1]), maps);
      for (const int64_t threads : numbers(arguments[4])) {
        const Shares took = one.run(threads, std::atoi(arguments[2]));
        std::printf(
            "%s{\"stage\": \"%s\", \"maps\": %lld, \"threads\": %lld, \"longest_ms\": %.4f, \"all_ms\": %.4f}\n",
            between, stage.name, static_cast<long long>(maps), static_cast<long long>(threads), took.longest, took.all);
        between = ",";
      }
    }
  std::puts("]");
}
