// Runs the AMX kernels' own source with tiles in plain C++ (csrc/emu/amx.h), against plain loops. Exits non-zero on the
// first difference. Built with -DDDN_EMULATE_AMX -fsanitize=address,undefined, each buffer its own heap block of
// exactly its size. Values are small whole numbers, so that sums are exact in any order.
#include "cpu/dense_amx.cpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

using namespace ddn;

namespace {

std::mt19937 rng(7);

uint16_t bfloat16(float value) {  // exact for the numbers used here
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

std::vector<float> whole_numbers(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(static_cast<int>(rng() % 9) - 4);
  return values;
}

std::vector<uint16_t> narrowed(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  bits.reserve(values.size());  // a block of exactly its size, so that what lies beyond is caught
  for (const float value : values) bits.push_back(bfloat16(value));
  return bits;
}

struct Shape {
  int64_t rows, outputs, inputs;
};

void test_dense(const Shape& s, Dtype x_dtype, bool bias, bool relu) {
  const std::vector<float> x = whole_numbers(s.rows * s.inputs), weight = whole_numbers(s.outputs * s.inputs),
                           b = whole_numbers(s.outputs);
  const std::vector<uint16_t> x_bits = narrowed(x), weight_bits = narrowed(weight);
  std::vector<float> y(static_cast<size_t>(s.rows * s.outputs), NAN);
  const DenseParams p{.x = x_dtype == Dtype::float32 ? static_cast<const void*>(x.data()) : x_bits.data(),
                      .weight = weight_bits.data(),
                      .bias = bias ? b.data() : nullptr,
                      .y = y.data(),
                      .x_dtype = x_dtype,
                      .dtype = Dtype::bfloat16,
                      .rows = s.rows,
                      .outputs = s.outputs,
                      .inputs = s.inputs,
                      .relu = relu};
  const cpu::DenseKernel& kernel = cpu::amx_bf16::dense_bfloat16;
  const size_t bytes = static_cast<size_t>(kernel.packed_bytes(p));
  const std::unique_ptr<void, void (*)(void*)> packed(std::aligned_alloc(64, bytes), std::free);
  const int64_t in_blocks = (s.inputs + 31) / 32, out_blocks = (s.outputs + 31) / 32;
  // in two shares, as two threads would have it
  kernel.pack(p, packed.get(), 0, in_blocks / 2), kernel.pack(p, packed.get(), in_blocks / 2, in_blocks);
  kernel.multiply(p, packed.get(), 0, out_blocks / 2), kernel.multiply(p, packed.get(), out_blocks / 2, out_blocks);

  for (int64_t row = 0; row < s.rows; ++row)
    for (int64_t n = 0; n < s.outputs; ++n) {
      float sum = bias ? b[static_cast<size_t>(n)] : 0.0f;
      for (int64_t k = 0; k < s.inputs; ++k)
        sum += x[static_cast<size_t>(row * s.inputs + k)] * weight[static_cast<size_t>(n * s.inputs + k)];
      const float wanted = relu && sum < 0 ? 0.0f : sum;
      if (y[static_cast<size_t>(row * s.outputs + n)] != wanted) {
        std::fprintf(stderr, "dense of %lldx%lld and %lldx%lld differs from the plain loop at [%lld,%lld]: %g, %g\n",
                     static_cast<long long>(s.rows), static_cast<long long>(s.inputs),
                     static_cast<long long>(s.outputs), static_cast<long long>(s.inputs), static_cast<long long>(row),
                     static_cast<long long>(n), y[static_cast<size_t>(row * s.outputs + n)], wanted);
        std::exit(1);
      }
    }
}

}  // namespace

int main() {
  const Shape shapes[] = {{1, 1, 1},    {16, 32, 32},   {16, 48, 1056}, {17, 33, 65}, {32, 16, 64},
                          {48, 64, 31}, {33, 20, 2080}, {128, 150, 96}, {5, 161, 33}, {40, 15, 1}};
  for (const Shape& s : shapes) {
    test_dense(s, Dtype::float32, true, true);
    test_dense(s, Dtype::bfloat16, false, false);
  }
  std::puts("ok");
}
