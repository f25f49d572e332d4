// Runs the very CUDA kernels, launch code included, on the host, and the CPU kernels, against plain loops. Exits
// non-zero on the first difference; with the argument "contract", hands a kernel an image_of_pass out of range, which
// must end it. Built with -fsanitize=address,undefined, each buffer its own heap block of exactly its size.
#define DDN_EMU
#include "cpu/gather2x2.cpp"
#include "cpu/max_pool2x2.cpp"
#include "cpu/max_unpool2x2.cpp"
#include "cuda/gather2x2.cu"
#include "cuda/max_pool2x2.cu"
#include "cuda/max_unpool2x2.cu"

#include <cmath>
#include <random>
#include <type_traits>
#include <vector>

using namespace ddn;

namespace {

std::mt19937 rng(7);

[[noreturn]] void differ(const char* what, int64_t at) {
  std::fprintf(stderr, "%s differs from the plain loop at %lld\n", what, static_cast<long long>(at));
  std::exit(1);
}

double number(float v) {
  return v;
}
double number(double v) {
  return v;
}
double number(BFloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<uint16_t>(v.bits)) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
double number(Float16 v) {
  const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  const double magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                           : exponent     ? std::ldexp(1024 + mantissa, exponent - 25)
                                          : std::ldexp(mantissa, -24);
  return v.bits < 0 ? -magnitude : magnitude;
}

// Few distinct values, so that ties are common, and all the special ones.
template <class T>
T any_value() {
  constexpr double values[] = {-2, -1, -0.0, 0, 0, 0, 1, 2, INFINITY, -INFINITY, NAN, -NAN};
  const double v = values[rng() % std::size(values)];
  if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(v);
  } else {
    return {static_cast<int16_t>(rng() % 4 ? rng() % 3 * 0x4000 : rng())};  // 0, 2, -0, or any bits
  }
}

template <class T>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<T, float>) return Dtype::float32;
  if constexpr (std::is_same_v<T, double>) return Dtype::float64;
  if constexpr (std::is_same_v<T, BFloat16>) return Dtype::bfloat16;
  return Dtype::float16;
}

template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// A heap block of exactly n elements, at a 16-byte boundary or, skewed, one element past one.
template <class T>
class Buffer {
 public:
  Buffer(int64_t n, bool skewed, int fill) : block_(static_cast<size_t>(n + skewed)), skew_(skewed) {
    if (!block_.empty()) std::memset(static_cast<void*>(block_.data()), fill, block_.size() * sizeof(T));
  }
  T* data() {
    return block_.data() + skew_;
  }
  T& operator[](int64_t i) {
    return block_[static_cast<size_t>(i + skew_)];
  }

 private:
  std::vector<T> block_;
  int skew_;
};

struct Shape {
  int64_t images, passes, height, width, channels;
  bool skew_x, skew_y;  // a pointer that 16-byte accesses must not be used on
};

int position_in(Buffer<uint8_t>& switches, int64_t pixel, int64_t channel, int64_t channels) {
  return switches[pixel * switch_bytes(channels) + channel / 4] >> 2 * (channel % 4) & 3;
}

// The kernel of either device, the CPU's in two shares as two threads would have it.
template <class Params>
void run(int (*on_cuda)(const Params&, cuda::Stream), void (*on_cpu)(const Params&, int64_t, int64_t), const Params& p,
         int64_t maps, bool cpu) {
  const int64_t rows = maps * half_up(p.height);
  if (cpu)
    on_cpu(p, 0, rows / 2), on_cpu(p, rows / 2, rows);
  else if (on_cuda(p, nullptr) != 0)
    differ("the error of a launch", 0);
}

template <class T>
void test_pool(const Shape& s, bool cpu) {
  const int64_t rows = half_up(s.height), columns = half_up(s.width), pixels = s.images * rows * columns;
  Buffer<T> x(s.images * s.height * s.width * s.channels, s.skew_x, 0), y(pixels * s.channels, s.skew_y, 0xff);
  Buffer<uint8_t> switches(pixels * switch_bytes(s.channels), false, 0xff);
  for (int64_t i = 0; i < s.images * s.height * s.width * s.channels; ++i) x[i] = any_value<T>();
  const MaxPool2x2Params p{x.data(), y.data(), switches.data(), dtype_of<T>(), s.images, s.height, s.width, s.channels};
  run(cuda::max_pool2x2, cpu::max_pool2x2, p, s.images, cpu);

  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t image = pixel / columns / rows, i = pixel / columns % rows, j = pixel % columns;
    for (int64_t c = 0; c < s.channels; ++c) {
      T best{};
      int winner = -1;
      for (int k = 0; k < 4; ++k) {
        const int64_t a = 2 * i + k / 2, b = 2 * j + k % 2;
        if (a >= s.height || b >= s.width) continue;
        const T value = x[((image * s.height + a) * s.width + b) * s.channels + c];
        if (winner < 0 || number(value) > number(best) || std::isnan(number(value))) best = value, winner = k;
      }
      if (!same_bits(y[pixel * s.channels + c], best)) differ("max_pool2x2's y", pixel * s.channels + c);
      if (position_in(switches, pixel, c, s.channels) != winner) differ("max_pool2x2's switches", pixel);
    }
    for (int64_t c = s.channels; c < 4 * switch_bytes(s.channels); ++c)
      if (position_in(switches, pixel, c, s.channels) != 0) differ("an unused switch bit", pixel);
  }
}

// Unpooling and its transpose with switches of random bits: also those that name places outside an odd edge.
template <class T>
void test_unpool_and_gather(const Shape& s, bool mapped, bool cpu) {
  const int64_t rows = half_up(s.height), columns = half_up(s.width);
  const int64_t small = s.passes * rows * columns * s.channels, full = s.passes * s.height * s.width * s.channels;
  const int64_t images = mapped ? s.images : s.passes;
  Buffer<uint8_t> switches(images * rows * columns * switch_bytes(s.channels), false, 0);
  for (int64_t i = 0; i < images * rows * columns * switch_bytes(s.channels); ++i)
    switches[i] = static_cast<uint8_t>(rng());
  Buffer<int64_t> image_of_pass(s.passes, false, 0);
  for (int64_t i = 0; i < s.passes; ++i) image_of_pass[i] = static_cast<int64_t>(rng() % images);
  Buffer<T> pooled(small, s.skew_x, 0), map(full, s.skew_x, 0), unpooled(full, s.skew_y, 0xff),
      gathered(small, s.skew_y, 0xff);
  for (int64_t i = 0; i < small; ++i) pooled[i] = any_value<T>();
  for (int64_t i = 0; i < full; ++i) map[i] = any_value<T>();

  const int64_t* of_pass = mapped ? image_of_pass.data() : nullptr;
  const MaxUnpool2x2Params u{pooled.data(), switches.data(), of_pass,  unpooled.data(), dtype_of<T>(),
                             images,        s.passes,        s.height, s.width,         s.channels};
  const Gather2x2Params g{map.data(), switches.data(), of_pass,  gathered.data(), dtype_of<T>(),
                          images,     s.passes,        s.height, s.width,         s.channels};
  run(cuda::max_unpool2x2, cpu::max_unpool2x2, u, s.passes, cpu);
  run(cuda::gather2x2, cpu::gather2x2, g, s.passes, cpu);

  for (int64_t at = 0; at < full; ++at) {
    const int64_t c = at % s.channels, b = at / s.channels % s.width, a = at / s.channels / s.width % s.height;
    const int64_t pass = at / s.channels / s.width / s.height, image = mapped ? image_of_pass[pass] : pass;
    const int64_t inside = (a / 2) * columns + b / 2;
    const bool here = position_in(switches, image * rows * columns + inside, c, s.channels) == a % 2 * 2 + b % 2;
    const int64_t from = (pass * rows * columns + inside) * s.channels + c;
    if (!same_bits(unpooled[at], here ? pooled[from] : T{})) differ("max_unpool2x2", at);
    if (here && !same_bits(gathered[from], map[at])) differ("gather2x2", from);
  }
  for (int64_t at = 0; at < small; ++at) {
    const int64_t c = at % s.channels, j = at / s.channels % columns, i = at / s.channels / columns % rows;
    const int64_t pass = at / s.channels / columns / rows, image = mapped ? image_of_pass[pass] : pass;
    const int k = position_in(switches, (image * rows + i) * columns + j, c, s.channels);
    const bool outside = 2 * i + k / 2 >= s.height || 2 * j + k % 2 >= s.width;
    if (outside && !same_bits(gathered[at], T{})) differ("gather2x2 outside the map", at);
  }
}

void test_bytes_of_switches() {
  for (int byte = 0; byte < 256; ++byte) {
    const uint32_t four = unpack4(static_cast<uint8_t>(byte));
    for (int k = 0; k < 4; ++k)
      if ((four >> 8 * k & 255) != static_cast<uint32_t>(byte >> 2 * k & 3)) differ("unpack4", byte);
    if (pack4(four) != byte) differ("pack4", byte);
  }
}

void break_the_contract() {
  float x[4] = {}, y[1];
  const uint8_t switches[1] = {};
  const int64_t image_of_pass[1] = {1};  // of one image, which is image 0
  cuda::gather2x2({x, switches, image_of_pass, y, Dtype::float32, 1, 1, 2, 2, 1}, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "contract") == 0) break_the_contract();
  test_bytes_of_switches();
  const Shape shapes[] = {
      {1, 2, 4, 4, 8, false, false}, {2, 3, 5, 7, 16, false, false}, {2, 3, 5, 7, 16, true, false},
      {2, 3, 5, 7, 16, false, true}, {3, 1, 1, 1, 1, false, false},  {1, 4, 2, 1, 3, false, false},
      {2, 2, 1, 6, 5, false, false}, {1, 1, 6, 3, 12, true, true},   {1, 2, 40, 40, 24, false, false},
      {0, 0, 4, 4, 8, false, false}, {2, 0, 3, 3, 4, false, false},
  };
  for (const Shape& s : shapes)
    for (const bool cpu : {false, true}) {
      test_pool<float>(s, cpu), test_pool<double>(s, cpu), test_pool<BFloat16>(s, cpu), test_pool<Float16>(s, cpu);
      for (const bool mapped : {false, true}) {
        if (mapped && s.images == 0) continue;
        test_unpool_and_gather<float>(s, mapped, cpu);
        test_unpool_and_gather<double>(s, mapped, cpu);
        test_unpool_and_gather<BFloat16>(s, mapped, cpu);
      }
    }
  std::puts("ok");
}
