// Runs a layer of the segmentation network in training and its gradients from their own source, plain and, where the
// flags say so, for AVX-512, under sanitizers against plain loops in double. Every buffer is a heap block of exactly
// its size; scratch is full of NaN. Exits non-zero on the first difference.
#ifdef __AVX512F__
#include "cpu/deconv3x3_moments_avx512.cpp"
#define VARIANT(name) name##_avx512
#else
#include "cpu/deconv3x3_moments_plain.cpp"
#define VARIANT(name) name##_plain
#endif
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "exact_scratch.h"

using namespace ddn;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

std::mt19937 rng(7);

Floats random_floats(int64_t count) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(rng);
  return values;
}

struct Shape {
  int64_t maps, in, out, height, width;  // height and width of y
  bool pooled;
};

void run_in_one_thread(int64_t count, cpu::Parallel::Body body, void* context) {
  for (int64_t k = 0; k < count; ++k) body(context, k, k + 1);  // each share by itself
}

void compare(const char* what, const Floats& got, const Doubles& wanted) {
  double most = 1;
  for (const double value : wanted) most = std::fmax(most, std::fabs(value));
  for (size_t k = 0; k < wanted.size(); ++k)
    if (!(std::fabs(got[k] - wanted[k]) <= 2e-5 * most)) {
      std::fprintf(stderr, "%s[%zu] is %g, wanted %g\n", what, k, static_cast<double>(got[k]), wanted[k]);
      std::exit(1);
    }
}

struct Case {
  Shape s;
  int64_t h, w, pixels, bytes;
  Floats x, weight, scale, shift;
  std::vector<uint8_t> switches;
  Doubles a, y;  // what is convolved, [N,H,W,C]; the result

  explicit Case(const Shape& shape) : s(shape) {
    const int64_t half = s.pooled ? 2 : 1;
    h = s.height / half, w = s.width / half, pixels = s.maps * s.height * s.width, bytes = (s.in + 3) / 4;
    x = random_floats(s.maps * h * w * s.in), weight = random_floats(s.in * 9 * s.out);
    scale = random_floats(s.in), shift = random_floats(s.in);
    if (s.pooled)
      for (int64_t k = 0; k < s.maps * h * w * bytes; ++k) switches.push_back(static_cast<uint8_t>(rng()));
    a.assign(static_cast<size_t>(pixels * s.in), 0);
    for (int64_t k = 0; k < s.maps * h * w * s.in; ++k) a[place(k)] = std::fmax(activated(k), 0.0);
    y = convolve();
  }

  double activated(int64_t k) const {  // in float, as the kernel decides where ReLU is on
    const size_t c = static_cast<size_t>(k % s.in);
    return scale[c] * x[static_cast<size_t>(k)] + shift[c];
  }

  size_t place(int64_t k) const {  // of value k of x in the map that is convolved
    if (!s.pooled) return static_cast<size_t>(k);
    const int64_t c = k % s.in, pixel = k / s.in, j = pixel % w, row = pixel / w;  // row counts over all maps
    const int position = switches[static_cast<size_t>(pixel * bytes + c / 4)] >> 2 * (c % 4) & 3;
    return static_cast<size_t>(((2 * row + position / 2) * s.width + 2 * j + position % 2) * s.in + c);
  }

  // Calls f(pixel of y, pixel of a, tap) for all that meet.
  template <class F>
  void each_meeting(F f) const {
    for (int64_t n = 0; n < s.maps; ++n)
      for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j)
          for (int64_t t = 0; t < 9; ++t) {
            const int64_t from_i = i + 1 - t / 3, from_j = j + 1 - t % 3;
            if (from_i < 0 || from_i >= s.height || from_j < 0 || from_j >= s.width) continue;
            f((n * s.height + i) * s.width + j, (n * s.height + from_i) * s.width + from_j, t);
          }
  }

  float weight_at(int64_t c, int64_t t, int64_t o) const {
    return weight[static_cast<size_t>((c * 9 + t) * s.out + o)];
  }

  Doubles convolve() const {
    Doubles result(static_cast<size_t>(pixels * s.out));
    each_meeting([&](int64_t to, int64_t from, int64_t t) {
      for (int64_t c = 0; c < s.in; ++c)
        for (int64_t o = 0; o < s.out; ++o)
          result[static_cast<size_t>(to * s.out + o)] += a[static_cast<size_t>(from * s.in + c)] * weight_at(c, t, o);
    });
    return result;
  }
};

int64_t padded(int64_t channels) {
  return (channels + 31) / 32 * 32;
}

// The gradients of a layer: given the gradient of y as it is, and as that of a score.
void check_gradients(const Case& c, const Floats& y, const Floats& mean) {
  const Shape& s = c.s;
  const cpu::Parallel parallel{run_in_one_thread, 1};
  const Floats grad_y = random_floats(c.pixels * s.out), grad_mean = random_floats(s.out),
               grad_var = random_floats(s.out), grad_score = random_floats(c.pixels * 2),
               score_scale = random_floats(s.out), score_shift = random_floats(s.out),
               score_weight = random_floats(2 * s.out);
  Floats grad_x(c.x.size()), grad_weight(c.weight.size()), grad_scale(static_cast<size_t>(s.in)),
      grad_shift(grad_scale), rows(static_cast<size_t>(s.maps * c.h * 2 * padded(s.in)));
  Deconv3x3MomentsBackwardParams p{grad_y.data(),
                                   grad_mean.data(),
                                   grad_var.data(),
                                   y.data(),
                                   mean.data(),
                                   c.x.data(),
                                   c.weight.data(),
                                   c.scale.data(),
                                   c.shift.data(),
                                   s.pooled ? c.switches.data() : nullptr,
                                   grad_x.data(),
                                   grad_weight.data(),
                                   grad_scale.data(),
                                   grad_shift.data(),
                                   rows.data(),
                                   Dtype::float32,
                                   s.maps,
                                   s.height,
                                   s.width,
                                   s.in,
                                   s.out};
  for (const bool scored : {false, true}) {
    if (scored) {
      p.grad_y = nullptr;
      cpu::VARIANT(deconv3x3_moments_backward_score)(
          {p, grad_score.data(), score_scale.data(), score_shift.data(), score_weight.data()}, parallel);
    } else {
      cpu::VARIANT(deconv3x3_moments_backward)(p, parallel);
    }
    Doubles g(c.y.size()), of_a(c.a.size()), of_weight(c.weight.size()), of_x(c.x.size());
    const double m = static_cast<double>(c.pixels);
    for (size_t k = 0; k < g.size(); ++k) {
      const size_t outputs = static_cast<size_t>(s.out), o = k % outputs, pixel = k / outputs;
      g[k] = (grad_mean[o] + 2.0 * grad_var[o] * (static_cast<double>(y[k]) - mean[o])) / m;
      if (!scored)
        g[k] += grad_y[k];
      else if (score_scale[o] * y[k] + score_shift[o] > 0)
        g[k] += static_cast<double>(score_scale[o]) *
                (static_cast<double>(grad_score[2 * pixel]) * score_weight[o] +
                 static_cast<double>(grad_score[2 * pixel + 1]) * score_weight[outputs + o]);
    }
    c.each_meeting([&](int64_t to, int64_t from, int64_t t) {
      for (int64_t i = 0; i < s.in; ++i)
        for (int64_t o = 0; o < s.out; ++o) {
          const double grad = g[static_cast<size_t>(to * s.out + o)];
          of_a[static_cast<size_t>(from * s.in + i)] += grad * c.weight_at(i, t, o);
          of_weight[static_cast<size_t>((i * 9 + t) * s.out + o)] += grad * c.a[static_cast<size_t>(from * s.in + i)];
        }
    });
    for (size_t k = 0; k < of_x.size(); ++k)
      if (c.activated(static_cast<int64_t>(k)) > 0)
        of_x[k] = of_a[c.place(static_cast<int64_t>(k))] * c.scale[k % static_cast<size_t>(s.in)];
    compare(scored ? "grad_x of a score" : "grad_x", grad_x, of_x);
    compare(scored ? "grad_weight of a score" : "grad_weight", grad_weight, of_weight);
  }
}

void check(const Shape& shape) {
  const Case c(shape);
  const Shape& s = c.s;
  const cpu::Parallel parallel{run_in_one_thread, 1};
  Floats y(c.y.size()), mean(static_cast<size_t>(s.out)), var(mean);
  Floats rows(static_cast<size_t>(s.maps * s.height * 2 * padded(s.out)));
  const uint8_t* switches = s.pooled ? c.switches.data() : nullptr;
  const Deconv3x3MomentsParams p{c.x.data(), c.weight.data(), c.scale.data(), c.shift.data(), switches,
                                 y.data(),   mean.data(),     var.data(),     rows.data(),    Dtype::float32,
                                 s.maps,     s.height,        s.width,        s.in,           s.out};
  cpu::VARIANT(deconv3x3_moments)(p, parallel);
  compare("y", y, c.y);

  mean = random_floats(s.out);
  check_gradients(c, y, mean);
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {1, 4, 5, 1, 1, false},   {2, 36, 33, 5, 7, false}, {1, 40, 36, 6, 10, true},  {3, 8, 64, 4, 4, true},
      {1, 5, 6, 21, 18, false}, {2, 6, 7, 26, 22, true},  {1, 68, 12, 3, 40, false},
  };
  for (const Shape& shape : shapes) check(shape);
  std::puts("ok");
}
