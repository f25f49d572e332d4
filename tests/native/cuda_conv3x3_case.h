// A stage of the CUDA convolution under the host emulation against plain loops; for programs that have included its
// sources. Values are small whole numbers: sums are exact in any order, and results are those of the plain loops
// rounded once. Each buffer is its own heap block of exactly its size.
#pragma once
#include <cmath>
#include <set>
#include <string>

using namespace ddn;

namespace {

using Floats = std::vector<float>;

std::mt19937 rng(5);

int below(int n) {
  return static_cast<int>(rng() % static_cast<unsigned>(n));
}

uint16_t narrowed(float value, Dtype dtype) {
  return dtype == Dtype::bfloat16 ? emu::narrowed<BFloat16>(value) : emu::narrowed<Float16>(value);
}

float widened(uint16_t bits, Dtype dtype) {
  return dtype == Dtype::bfloat16 ? emu::widened<BFloat16>(bits) : emu::widened<Float16>(bits);
}

std::vector<uint16_t> narrowed(const Floats& values, Dtype dtype) {
  std::vector<uint16_t> bits;
  bits.reserve(values.size());  // and no byte more
  for (const float value : values) bits.push_back(narrowed(value, dtype));
  return bits;
}

struct Layer {
  int in, out;
  Floats weight, bias;  // [O,C,9], [O]
  std::vector<uint16_t> pairs;

  Layer(int in, int out, Dtype dtype)
      : in(in), out(out), weight(static_cast<size_t>(out * in * 9)), bias(static_cast<size_t>(out)) {
    for (float& value : weight) value = static_cast<float>(below(3) - 1);
    for (float& value : bias) value = static_cast<float>(below(5) - 2);
    const int taps = 9 * in <= 32 ? 1 : 9, rows = taps == 1 ? 1 : (in + 31) / 32, columns = (out + 31) / 32;
    pairs.resize(static_cast<size_t>(columns * rows * taps * 1024));
    for (int o = 0; o < out; ++o)
      for (int c = 0; c < in; ++c)
        for (int t = 0; t < 9; ++t) {
          const int k = taps == 1 ? t * in + c : c, tap = taps == 1 ? 0 : t;
          const int base = ((o / 32 * rows + k / 32) * taps + tap) * 1024;
          pairs[static_cast<size_t>(base + o % 32 / 16 * 512 + k % 32 / 2 * 32 + o % 16 * 2 + k % 2)] =
              narrowed(weight[static_cast<size_t>((o * in + c) * 9 + t)], dtype);
        }
  }
};

struct Shape {
  int maps, height, width;
  std::vector<int> channels;
};

// [N,H,W,C] to [N,H,W,O], ReLU included.
Floats convolve(const Floats& x, const Layer& layer, const Shape& s) {
  Floats y(static_cast<size_t>(s.maps * s.height * s.width * layer.out));
  for (int n = 0; n < s.maps; ++n)
    for (int i = 0; i < s.height; ++i)
      for (int j = 0; j < s.width; ++j)
        for (int o = 0; o < layer.out; ++o) {
          float sum = layer.bias[static_cast<size_t>(o)];
          for (int t = 0; t < 9; ++t) {
            const int row = i + t / 3 - 1, column = j + t % 3 - 1;
            if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
            const float* from = &x[static_cast<size_t>(((n * s.height + row) * s.width + column) * layer.in)];
            const float* weight = &layer.weight[static_cast<size_t>(o * layer.in * 9 + t)];
            for (int c = 0; c < layer.in; ++c) sum += from[c] * weight[c * 9];
          }
          y[static_cast<size_t>(((n * s.height + i) * s.width + j) * layer.out + o)] = sum > 0 ? sum : 0;
        }
  return y;
}

enum class End { map, pooled, score };

[[noreturn]] void differs(const char* what, const Shape& s, size_t at, float got, float wanted) {
  std::fprintf(stderr, "%s of %d maps %dx%d with %d to %d channels differs from the plain loop at %zu: %g, not %g\n",
               what, s.maps, s.height, s.width, s.channels.front(), s.channels.back(), at, static_cast<double>(got),
               static_cast<double>(wanted));
  std::exit(1);
}

struct Case {
  Shape s;
  bool unpool;
  End end;
  Dtype dtype = Dtype::bfloat16;
  bool bad_image = false;
};

Floats unpooled(const Floats& x, const Shape& s, const std::vector<uint8_t>& switches,
                const std::vector<int64_t>& image_of_pass) {
  const int in = s.channels.front(), h = s.height / 2, w = s.width / 2, bytes = (in + 3) / 4;
  Floats full(static_cast<size_t>(s.maps * s.height * s.width * in), 0.0f);
  for (int n = 0; n < s.maps; ++n)
    for (int i = 0; i < h; ++i)
      for (int j = 0; j < w; ++j)
        for (int c = 0; c < in; ++c) {
          const int image = static_cast<int>(image_of_pass[static_cast<size_t>(n)]);
          const int place = switches[static_cast<size_t>(((image * h + i) * w + j) * bytes + c / 4)] >> 2 * (c % 4) & 3;
          full[static_cast<size_t>(((n * s.height + 2 * i + place / 2) * s.width + 2 * j + place % 2) * in + c)] =
              x[static_cast<size_t>(((n * h + i) * w + j) * in + c)];
        }
  return full;
}

void test(const Case& test) {
  const Shape& s = test.s;
  std::vector<Layer> made;
  for (size_t l = 0; l + 1 < s.channels.size(); ++l) made.emplace_back(s.channels[l], s.channels[l + 1], test.dtype);
  std::vector<Conv3x3Layer> layers;
  for (const Layer& layer : made)
    layers.push_back({layer.pairs.data(), layer.bias.data(), Conv3x3Layout::pairs, layer.in, layer.out});
  const int in = s.channels.front(), out = s.channels.back();
  const int h = test.unpool ? s.height / 2 : s.height, w = test.unpool ? s.width / 2 : s.width, images = 2;
  Floats x(static_cast<size_t>(s.maps * h * w * in));
  for (float& value : x) value = static_cast<float>(below(4));
  const std::vector<uint16_t> x_bits = narrowed(x, test.dtype);
  std::vector<uint8_t> switches(static_cast<size_t>(images * h * w * ((in + 3) / 4)));
  for (uint8_t& byte : switches) byte = static_cast<uint8_t>(rng());
  std::vector<int64_t> image_of_pass;
  image_of_pass.reserve(static_cast<size_t>(s.maps));
  for (int n = 0; n < s.maps; ++n) image_of_pass.push_back(test.bad_image ? images : below(images));

  Floats wanted = test.unpool && !test.bad_image ? unpooled(x, s, switches, image_of_pass) : x;
  for (size_t l = 0; l < made.size() && !test.bad_image; ++l) {
    wanted = convolve(wanted, made[l], s);
    if (l + 1 < made.size() || test.end != End::score || out > 128)  // what is scored in the kernel is never rounded
      for (float& value : wanted) value = widened(narrowed(value, test.dtype), test.dtype);
  }

  const int out_h = test.end == End::pooled ? s.height / 2 : s.height;
  const int out_w = test.end == End::pooled ? s.width / 2 : s.width, bytes = (out + 3) / 4;
  std::vector<uint16_t> y(test.end == End::score ? 0 : static_cast<size_t>(s.maps * out_h * out_w * out), 0x7fff);
  std::vector<uint8_t> y_switches(test.end == End::pooled ? static_cast<size_t>(s.maps * out_h * out_w * bytes) : 0,
                                  0xee);
  Floats score(test.end == End::score ? static_cast<size_t>(s.maps * s.height * s.width) : 0, NAN);
  Floats score_weight(static_cast<size_t>(out));
  for (float& value : score_weight) value = static_cast<float>(below(5) - 2);
  const float score_bias = 3;
  Conv3x3Params p{};
  p.x = x_bits.data();
  p.switches = test.unpool ? switches.data() : nullptr;
  p.image_of_pass = test.unpool ? image_of_pass.data() : nullptr;
  p.images = images;
  p.layers = layers.data();
  p.layer_count = static_cast<int64_t>(layers.size());
  p.dtype = test.dtype;
  p.maps = s.maps, p.height = s.height, p.width = s.width;
  p.y = test.end == End::score ? nullptr : y.data();
  p.y_switches = test.end == End::pooled ? y_switches.data() : nullptr;
  p.score = test.end == End::score ? score.data() : nullptr;
  p.score_weight = score_weight.data(), p.score_bias = &score_bias;
  const int64_t workspace_bytes = cuda::conv3x3_workspace_bytes(p);
  void* workspace = nullptr;
  if (workspace_bytes < 0 || posix_memalign(&workspace, 256, static_cast<size_t>(workspace_bytes))) std::exit(1);
  const std::unique_ptr<void, void (*)(void*)> owner(workspace, std::free);
  std::memset(workspace, 0xff, static_cast<size_t>(workspace_bytes));
  p.workspace = workspace;
  if (cuda::conv3x3(p, nullptr) != 0) differs("status", s, 0, 1, 0);

  const auto full = [&](int n, int i, int j, int c) {
    return wanted[static_cast<size_t>(((n * s.height + i) * s.width + j) * out + c)];
  };
  for (size_t at = 0; at < score.size(); ++at) {
    float sum = score_bias;
    for (int c = 0; c < out; ++c)
      sum += wanted[at * static_cast<size_t>(out) + static_cast<size_t>(c)] * score_weight[static_cast<size_t>(c)];
    if (score[at] != sum) differs("score", s, at, score[at], sum);
  }
  for (size_t k = 0; k < y.size(); ++k) {
    const size_t pixel = k / static_cast<size_t>(out);
    const int c = static_cast<int>(k % static_cast<size_t>(out)), j = static_cast<int>(pixel) % out_w;
    const int i = static_cast<int>(pixel) / out_w % out_h, n = static_cast<int>(pixel) / out_w / out_h;
    const float got = widened(y[k], test.dtype);
    if (test.end == End::map) {
      if (got != full(n, i, j, c)) differs("map", s, k, got, full(n, i, j, c));
      continue;
    }
    float best = full(n, 2 * i, 2 * j, c);
    int place = 0;
    for (int q = 1; q < 4; ++q)
      if (full(n, 2 * i + q / 2, 2 * j + q % 2, c) > best) best = full(n, 2 * i + q / 2, 2 * j + q % 2, c), place = q;
    if (got != best) differs("pooled", s, k, got, best);
    const uint8_t byte = y_switches[pixel * static_cast<size_t>(bytes) + static_cast<size_t>(c / 4)];
    if ((byte >> 2 * (c % 4) & 3) != place)
      differs("switches", s, k, static_cast<float>(byte), static_cast<float>(place));
    if (c == out - 1 && out % 4 && byte >> 2 * (out % 4)) differs("unused switch bits", s, k, 1, 0);
  }
}

std::set<std::string> covered;

// Exit status: 1 where one of `wanted` was never noted.
[[maybe_unused]] int missing(std::initializer_list<const char*> wanted) {
  for (const char* const one : wanted)
    if (!covered.count(one)) {
      std::fprintf(stderr, "no case of: %s\n", one);
      return 1;
    }
  return 0;
}

// Reads `image_of_pass` of an image that is not there, which must end the kernel.
void break_the_contract() {
  test({{1, 4, 4, {32, 32}}, true, End::map, Dtype::bfloat16, true});
}

struct PlanWanted {
  int maps, side, out, blocks;
  double least_use;       // share of the tiles that is not waste
  double least_occupied;  // share of 132 multiprocessors that get a block
};

template <class Plan>
void check_plan(const Plan& plan_of, const PlanWanted& w) {
  const Conv3x3Plan plan = plan_of(w);
  const Conv3x3TileSize& size = tile_size(plan.kind);
  const double use = w.side * w.side / 4.0 * w.out /
                     (1.0 * plan.tile_rows * plan.tile_columns * size.windows * plan.out_tiles * size.outputs);
  const double occupied = std::min<double>(1, static_cast<double>(plan.tiles(w.maps) * plan.slices) / 132);
  if (std::getenv("DDN_SHOW_PLANS"))
    std::printf("%d maps of %d, %d outputs: tile %d x %d windows x %d, %lld blocks in %d slices, use %.2f\n", w.maps,
                w.side, w.out, plan.rows, plan.columns, size.outputs,
                static_cast<long long>(plan.tiles(w.maps) * plan.slices), plan.slices, use);
  if (use < w.least_use || occupied < w.least_occupied) {
    std::fprintf(stderr, "plan of %d maps of %d with %d outputs: %.2f of its tiles used, %.2f of the device\n", w.maps,
                 w.side, w.out, use, occupied);
    std::exit(1);
  }
}

}  // namespace
