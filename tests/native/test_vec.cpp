// float16 from float, for every float16, what lies half way to the next, and the floats around both.
#include "cpu/vec.h"

#include <cmath>
#include <cstdio>

namespace {

// The value of positive float16 bits; of 0x7c00 the one that would follow the largest.
double value_of(int bits) {
  const int exponent = bits >> 10, fraction = bits & 0x3ff;
  return exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
}

uint16_t converted(float value) {
  using namespace ddn::cpu;
  FP16 out[kWidth];
  float lanes[kWidth] = {};
  lanes[kWidth - 1] = value;
  store(out, load(lanes));
  return out[kWidth - 1].bits;
}

int expect(float value, int bits) {
  int wrong = converted(value) != bits;
  wrong += converted(-value) != (bits | 0x8000);
  if (wrong) std::fprintf(stderr, "%a: got %x, wanted %x\n", value, converted(value), bits);
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int bits = 0; bits < 0x7c00; ++bits) {
    const float value = static_cast<float>(value_of(bits));
    const float middle = static_cast<float>((value_of(bits) + value_of(bits + 1)) / 2);  // exact: 12 bits
    wrong += expect(value, bits) + expect(std::nextafterf(value, 1e9f), bits);
    wrong += expect(std::nextafterf(middle, 0.f), bits) + expect(middle, bits + (bits & 1));
    wrong += expect(std::nextafterf(middle, 1e9f), bits + 1);
  }
  wrong += expect(65536.f, 0x7c00) + expect(3e38f, 0x7c00) + expect(INFINITY, 0x7c00) + expect(1e-45f, 0);
  const uint16_t nan = converted(NAN);
  if ((nan & 0x7c00) != 0x7c00 || (nan & 0x3ff) == 0) ++wrong, std::fprintf(stderr, "NaN: got %x\n", nan);
  if (wrong == 0) std::puts("ok");
  return wrong != 0;
}
