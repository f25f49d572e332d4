// Runs the convolution's own source, plain and AMX (tiles in plain C++, csrc/emu/amx.h), against plain loops. Exits
// non-zero on the first difference. Built with -DDDN_EMULATE_AMX -fsanitize=address,undefined; scratch is a heap block
// of exactly what was asked for, full of NaN. Values are small whole numbers, exact in bfloat16 and in any order of
// sums.
#include "cpu/conv3x3_amx.cpp"
#include "cpu/conv3x3_plain.cpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "exact_scratch.h"

using namespace ddn;

namespace {

using Floats = std::vector<float>;

std::mt19937 rng(5);

int below(int n) {
  return static_cast<int>(rng() % static_cast<unsigned>(n));
}

std::vector<uint16_t> narrowed(const Floats& values) {
  std::vector<uint16_t> bits;
  bits.reserve(values.size());  // a block of exactly its size, so that what lies beyond is caught
  for (const float value : values) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    bits.push_back(static_cast<uint16_t>(word >> 16));
  }
  return bits;
}

float widened(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// Weights [O,C,9] of which three a output are not 0, so that three layers stay below 256.
struct Layer {
  int in, out;
  Floats weight, bias;
  std::vector<uint16_t> pairs;
  Floats direct;
  std::vector<int16_t> whole;  // empty where the layer is one tap

  Layer(int in, int out) : in(in), out(out), weight(static_cast<size_t>(out * in * 9)), bias(static_cast<size_t>(out)) {
    for (int o = 0; o < out; ++o) {
      for (int k = 0; k < 3; ++k) at(o, below(in), below(9)) = static_cast<float>(below(3) - 1);
      bias[static_cast<size_t>(o)] = static_cast<float>(below(5) - 2);
    }
    const int taps = 9 * in <= 32 ? 1 : 9, rows = taps == 1 ? 1 : (in + 31) / 32, columns = (out + 31) / 32;
    pairs.resize(static_cast<size_t>(columns * rows * taps * 1024));
    direct.resize(pairs.size());
    for (int o = 0; o < out; ++o)
      for (int c = 0; c < in; ++c)
        for (int t = 0; t < 9; ++t) {
          const int k = taps == 1 ? t * in + c : c, tap = taps == 1 ? 0 : t;
          const int base = ((o / 32 * rows + k / 32) * taps + tap) * 1024;
          direct[static_cast<size_t>(base + k % 32 * 32 + o % 32)] = at(o, c, t);
          pairs[static_cast<size_t>(base + o % 32 / 16 * 512 + k % 32 / 2 * 32 + o % 16 * 2 + k % 2)] =
              narrowed({at(o, c, t)})[0];
        }
    if (taps == 9) pack_whole(rows, columns);
  }

  // The winograd_int16 layout; a scale an output instead of one an output and point.
  void pack_whole(int rows, int columns) {
    const double root = std::sqrt(2.0);
    const double g[6][3] = {{1, 0, 0},
                            {-2 / 3.0, -root / 3, -1 / 3.0},
                            {-2 / 3.0, root / 3, -1 / 3.0},
                            {1 / 6.0, root / 6, 1 / 3.0},
                            {1 / 6.0, -root / 6, 1 / 3.0},
                            {0, 0, 1}};
    const double bound[6] = {4.5, 3 + 1.5 * root, 3 + 1.5 * root, 1.5 + 1.5 * root, 1.5 + 1.5 * root, 4.5};
    const size_t kernel = static_cast<size_t>(16 * rows + 1) * 64;
    whole.assign(static_cast<size_t>(columns) * 36 * kernel, 0);
    const double scale = 20000;  // three weights of at most 1 make at most 3 * 1 of each point
    for (int o = 0; o < out; ++o)
      for (int k = 0; k < 36; ++k) {
        int16_t* at_point = whole.data() + static_cast<size_t>(o / 32 * 36 + k) * kernel;
        for (int c = 0; c < in; ++c) {
          double sum = 0;
          for (int t = 0; t < 9; ++t) sum += g[k / 6][t / 3] * g[k % 6][t % 3] * at(o, c, t);
          at_point[c / 2 * 64 + o % 32 * 2 + c % 2] = static_cast<int16_t>(std::lround(sum * scale));
        }
        const float worth = static_cast<float>(bound[k / 6] * bound[k % 6] / 32760 / scale);
        std::memcpy(at_point + 16 * rows * 64 + o % 32 * 2, &worth, sizeof worth);
      }
  }

  float& at(int o, int c, int t) {
    return weight[static_cast<size_t>((o * in + c) * 9 + t)];
  }
};

struct Shape {
  int maps, height, width;
  std::vector<int> channels;
};

Floats convolve(const Floats& x, Layer& layer, const Shape& s) {
  Floats y(static_cast<size_t>(s.maps * s.height * s.width * layer.out));
  for (int n = 0; n < s.maps; ++n)
    for (int i = 0; i < s.height; ++i)
      for (int j = 0; j < s.width; ++j)
        for (int o = 0; o < layer.out; ++o) {
          float sum = layer.bias[static_cast<size_t>(o)];
          for (int t = 0; t < 9; ++t) {
            const int row = i + t / 3 - 1, column = j + t % 3 - 1;
            if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
            for (int c = 0; c < layer.in; ++c)
              sum +=
                  x[static_cast<size_t>(((n * s.height + row) * s.width + column) * layer.in + c)] * layer.at(o, c, t);
          }
          y[static_cast<size_t>(((n * s.height + i) * s.width + j) * layer.out + o)] = sum > 0 ? sum : 0;
        }
  return y;
}

void in_three_shares(int64_t count, cpu::Parallel::Body body, void* context) {
  for (int k = 0; k < 3; ++k)
    if (count * k / 3 < count * (k + 1) / 3) body(context, count * k / 3, count * (k + 1) / 3);
}

enum class End { plain, pooled, score };

[[noreturn]] void differs(const char* what, const Shape& s, size_t at, float got, float wanted) {
  std::fprintf(stderr, "%s of %d maps %dx%d with %d channels first differs from the plain loop at %zu: %g, %g\n", what,
               s.maps, s.height, s.width, s.channels[0], at, got, wanted);
  std::exit(1);
}

enum class Way { direct, amx, whole };

void test(const Shape& s, Way way, bool bfloat16, bool unpool, End end) {
  std::vector<Layer> made;
  for (size_t l = 0; l + 1 < s.channels.size(); ++l) made.emplace_back(s.channels[l], s.channels[l + 1]);
  std::vector<Conv3x3Layer> layers;
  for (const Layer& layer : made)
    if (way == Way::amx)
      layers.push_back({layer.pairs.data(), layer.bias.data(), Conv3x3Layout::pairs, layer.in, layer.out});
    else if (way == Way::whole && !layer.whole.empty())
      layers.push_back({layer.whole.data(), layer.bias.data(), Conv3x3Layout::winograd_int16, layer.in, layer.out});
    else
      layers.push_back({layer.direct.data(), layer.bias.data(), Conv3x3Layout::direct, layer.in, layer.out});

  const int in = s.channels.front(), out = s.channels.back();
  const int h = unpool ? s.height / 2 : s.height, w = unpool ? s.width / 2 : s.width, images = unpool ? 2 : 0;
  Floats x(static_cast<size_t>(s.maps * h * w * in));
  for (float& value : x) value = static_cast<float>(below(4));
  for (Conv3x3Layer& layer : layers) layer.keep_ties = end == End::pooled;  // which only winograd looks at
  for (size_t k = 0; k < x.size() && end == End::pooled; ++k)  // constant in a place, and along columns in another
    if (const size_t row = k / in / w % h; row % 16 > 7) x[k] = row % 16 > 11 ? 1.0f : x[k % (in * w)];
  const std::vector<uint16_t> x_bits = narrowed(x);
  std::vector<uint8_t> switches(static_cast<size_t>(images * h * w * ((in + 3) / 4)));
  for (uint8_t& byte : switches) byte = static_cast<uint8_t>(rng());
  std::vector<int64_t> image_of_pass;
  for (int n = 0; n < s.maps; ++n) image_of_pass.push_back(below(2));

  Floats wanted = x;
  if (unpool) {
    wanted.assign(static_cast<size_t>(s.maps * s.height * s.width * in), 0.0f);
    for (int n = 0; n < s.maps; ++n)
      for (int i = 0; i < h; ++i)
        for (int j = 0; j < w; ++j)
          for (int c = 0; c < in; ++c) {
            const size_t byte =
                ((static_cast<size_t>(image_of_pass[static_cast<size_t>(n)]) * h + i) * w + j) * ((in + 3) / 4);
            const int place = switches[byte + static_cast<size_t>(c / 4)] >> 2 * (c % 4) & 3;
            const int row = 2 * i + place / 2, column = 2 * j + place % 2;
            wanted[static_cast<size_t>(((n * s.height + row) * s.width + column) * in + c)] =
                x[static_cast<size_t>(((n * h + i) * w + j) * in + c)];
          }
  }
  for (Layer& layer : made) wanted = convolve(wanted, layer, s);

  const int out_h = end == End::pooled ? s.height / 2 : s.height, out_w = end == End::pooled ? s.width / 2 : s.width;
  Floats y(static_cast<size_t>(s.maps * out_h * out_w * out), NAN),
      score(static_cast<size_t>(s.maps * s.height * s.width), NAN);
  std::vector<uint16_t> y_bits(y.size(), 0x7fff);
  std::vector<uint8_t> y_switches(static_cast<size_t>(s.maps * out_h * out_w * ((out + 3) / 4)), 0xee);
  Floats score_weight(static_cast<size_t>(out));
  for (float& value : score_weight) value = static_cast<float>(below(5) - 2);
  const float score_bias = 3;
  Conv3x3Params p{};
  p.x = bfloat16 ? static_cast<const void*>(x_bits.data()) : x.data();
  p.switches = unpool ? switches.data() : nullptr;
  p.image_of_pass = unpool ? image_of_pass.data() : nullptr;
  p.layers = layers.data();
  p.layer_count = static_cast<int64_t>(layers.size());
  p.dtype = bfloat16 ? Dtype::bfloat16 : Dtype::float32;
  p.maps = s.maps, p.height = s.height, p.width = s.width;
  p.y = end == End::score ? nullptr : bfloat16 ? static_cast<void*>(y_bits.data()) : y.data();
  p.y_switches = end == End::pooled ? y_switches.data() : nullptr;
  p.score = end == End::score ? score.data() : nullptr;
  p.score_weight = score_weight.data(), p.score_bias = &score_bias;
  // More threads than there are: maps are cut as finely as they may be.
  (way == Way::amx ? cpu::conv3x3_amx : cpu::conv3x3_plain)(p, {in_three_shares, below(2) ? 3 : 50});

  if (bfloat16)
    for (size_t k = 0; k < y.size(); ++k) y[k] = widened(y_bits[k]);
  const auto full = [&](int n, int i, int j, int c) {
    return wanted[static_cast<size_t>(((n * s.height + i) * s.width + j) * out + c)];
  };
  float largest = 0;
  for (const float value : wanted) largest = value > largest ? value : largest;
  const float near = way == Way::whole ? (bfloat16 ? 0.02f : 0.01f) * (largest + 1) : 0;
  const auto differ = [&](float got, float right) { return !(std::fabs(got - right) <= near); };
  size_t k = 0;
  for (int n = 0; n < s.maps; ++n)
    for (int i = 0; i < out_h; ++i)
      for (int j = 0; j < out_w; ++j) {
        if (end == End::score) {
          float sum = score_bias;
          for (int c = 0; c < out; ++c) sum += full(n, i, j, c) * score_weight[static_cast<size_t>(c)];
          const size_t at = static_cast<size_t>((n * s.height + i) * s.width + j);
          if (way == Way::whole ? !std::isfinite(score[at]) : score[at] != sum) differs("score", s, at, score[at], sum);
          continue;
        }
        for (int c = 0; c < out; ++c, ++k) {
          float best = end == End::pooled ? full(n, 2 * i, 2 * j, c) : full(n, i, j, c);
          int place = 0;
          for (int q = 1; q < 4 && end == End::pooled; ++q)
            if (full(n, 2 * i + q / 2, 2 * j + q % 2, c) > best)
              best = full(n, 2 * i + q / 2, 2 * j + q % 2, c), place = q;
          if (differ(y[k], best)) differs(end == End::pooled ? "pooled" : "plain", s, k, y[k], best);
          if (end != End::pooled || way == Way::whole) continue;
          const size_t byte = static_cast<size_t>(((n * out_h + i) * out_w + j) * ((out + 3) / 4) + c / 4);
          const int got = y_switches[byte] >> 2 * (c % 4) & 3;
          if (got != place) differs("switches", s, k, static_cast<float>(got), static_cast<float>(place));
          if (c == out - 1 && out % 4 && y_switches[byte] >> 2 * (out % 4)) differs("unused bits", s, k, 1, 0);
        }
      }
}

}  // namespace

int main() {
  const Shape shapes[] = {{2, 4, 6, {3, 16, 16}},   {1, 22, 10, {3, 33}},      {2, 2, 2, {32, 32}},
                          {3, 12, 8, {40, 33, 36}}, {3, 4, 4, {64, 70, 64}},   {1, 20, 34, {36, 32}},
                          {1, 10, 12, {4, 5}},      {1, 44, 6, {8, 7, 9, 32}}, {1, 26, 22, {40, 64, 33}}};
  for (const Shape& s : shapes)
    for (const End end : {End::plain, End::pooled, End::score})
      for (const bool unpool : {false, true}) {
        if (unpool && s.channels[0] < 4) continue;
        test(s, Way::amx, true, unpool, end);
        test(s, Way::direct, s.maps > 1, unpool, end);
        test(s, Way::whole, s.maps > 1, unpool, end);
      }
  test({2, 12, 8, {40, 33, 36}}, Way::amx, false, true, End::pooled);  // float maps through bfloat16 tiles
  test({1, 7, 5, {8, 9, 8}}, Way::amx, true, false, End::plain);       // odd sides
  test({2, 21, 3, {3, 8}}, Way::direct, true, false, End::score);
  test({1, 23, 31, {40, 70}}, Way::whole, false, false, End::plain);
  std::puts("ok");
}
