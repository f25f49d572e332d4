// What the convolution for sm_90a takes for granted of the hardware, one thing at a time. On a GPU this says which of
// it is wrong; under the host emulation (test_cuda_assumptions.cpp) that the emulation takes the same for granted.
//
// A product's right side is read from a shared memory full of random values by a descriptor; the host works out the
// sums from where the documented rule says that the values lie, and, where that fails, from where other rules would
// have them.
#pragma once
#include <functional>
#include <random>
#include <string>

#include "cuda/warpgroup.cuh"
#include "device_array.h"

namespace ddn::probe {

constexpr int kSharedBytes = 56 << 10;

// One product of [64,16] by [16,2*VALUES].
struct ProductLaunch {
  const uint4* shared;                                        // [kSharedBytes / 16]: what shared memory holds
  const uint32_t* left;                                       // [64,8] pairs of values
  float* sums;                                                // [64,2*VALUES]
  uint32_t start, of_eight_values, of_eight_rows, swizzling;  // of the descriptor; start: from the block's first byte
};

template <class T, int VALUES>
DDN_GLOBAL void DDN_LAUNCH_BOUNDS(128, 1) product_kernel(const ProductLaunch p) {
  DDN_SHARED_MEMORY(shared);
  // descriptors see addresses: the image begins at the first that a swizzling's pattern may begin at
  const Shared whole = shared_address(shared);
  const Shared memory = whole + (1024 - shared_offset(whole) % 1024) % 1024;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  for (int i = thread; i < kSharedBytes / 16; i += 128) store_shared16(memory + i * 16, p.shared[i]);
  fence_for_products();
  synchronize_block();
  uint32_t left[4];
  for (int i = 0; i < 4; ++i) left[i] = p.left[(warp * 16 + lane / 4 + i % 2 * 8) * 8 + lane % 4 + i / 2 * 4];
  float sums[VALUES] = {};
  DDN_UNROLL
  for (int i = 0; i < 4; ++i) settle(left[i]);
  DDN_UNROLL
  for (int k = 0; k < VALUES; ++k) settle(sums[k]);  // or their zeros come after the fence
  fence_registers();
  begin_product<T>(sums, left,
                   descriptor_of(shared_offset(memory) + p.start, p.of_eight_values, p.of_eight_rows, p.swizzling));
  commit_products();
  wait_for_products<0>();
  DDN_UNROLL
  for (int k = 0; k < VALUES; ++k) {
    settle(sums[k]);
    const int row = warp * 16 + lane / 4 + k / 2 % 2 * 8, column = k / 4 * 8 + lane % 4 * 2 + k % 2;
    p.sums[row * 2 * VALUES + column] = sums[k];
  }
}

// A ring as the convolution's, of 2 copies of 3 KiB a stage: `rounds` stages of `from` are added up, value by value.
struct RingLaunch {
  const uint32_t* from;  // [period,1536]
  uint32_t* sums;        // [128,12], of the first block
  int rounds, period;
};

constexpr int kRingStages = 4, kRingWords = 1536, kRingBarriers = kRingStages * kRingWords * 4;
constexpr int kRingBytes = kRingBarriers + 2 * kRingStages * 8;

DDN_GLOBAL void DDN_LAUNCH_BOUNDS(256, 2) ring_kernel(const RingLaunch p) {
  DDN_SHARED_MEMORY(shared);
  const Shared memory = shared_address(shared), full = memory + kRingBarriers, empty = full + kRingStages * 8;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int stage = 0; stage < kRingStages; ++stage)
      init_barrier(full + stage * 8, 1), init_barrier(empty + stage * 8, 4);
    fence_barriers();
  }
  synchronize_block();
  if (thread >= 128) {
    leave_registers<40>();
    if (thread != 128) return;
    for (int round = 0; round < p.rounds; ++round) {
      const int stage = round % kRingStages;
      wait_for_phase(empty + stage * 8, (round / kRingStages & 1) ^ 1);
      arrive_expecting(full + stage * 8, kRingWords * 4);
      const uint32_t* from = p.from + (static_cast<int>(blockIdx.x) * 17 + round) % p.period * kRingWords;
      for (int half = 0; half < 2; ++half)
        copy_bulk(memory + (stage * 2 + half) * kRingWords * 2, from + half * kRingWords / 2, kRingWords * 2,
                  full + stage * 8);
    }
  } else {
    take_registers<216>();
    uint32_t sums[12] = {};
    for (int round = 0; round < p.rounds; ++round) {
      const int stage = round % kRingStages;
      wait_for_phase(full + stage * 8, round / kRingStages & 1);
      for (int k = 0; k < 12; ++k) sums[k] += load_shared4(memory + (stage * kRingWords + k * 128 + thread) * 4);
      synchronize_warp();
      if (thread % 32 == 0) arrive(empty + stage * 8);
    }
    for (int k = 0; k < 12 && blockIdx.x == 0; ++k) p.sums[thread * 12 + k] = sums[k];
  }
}

struct Rule {
  const char* name;
  std::function<uint32_t(const ProductLaunch&, uint32_t n, uint32_t k)> address;  // from the image's first byte
};

inline uint32_t documented_address(const ProductLaunch& p, uint32_t n, uint32_t k) {
  if (p.swizzling == 0) return p.start + n % 8 * 16 + n / 8 * p.of_eight_rows + k / 8 * p.of_eight_values + k % 8 * 2;
  const uint32_t row = 256 >> p.swizzling, address = p.start + n % 8 * row + n / 8 * p.of_eight_rows + k * 2;
  return address ^ (address >> 7 & (row / 16 - 1)) << 4;
}

inline std::vector<Rule> rules() {
  const auto with = [](auto change) {
    return [change](const ProductLaunch& p, uint32_t n, uint32_t k) {
      ProductLaunch other = p;
      change(other);
      return documented_address(other, n, k);
    };
  };
  return {
      {"as documented", documented_address},
      {"leading and stride offsets are exchanged",
       with([](ProductLaunch& p) { std::swap(p.of_eight_values, p.of_eight_rows); })},
      {"the start is rounded down to 128 bytes", with([](ProductLaunch& p) { p.start &= ~127u; })},
      {"the stride offset is rounded down to 128 bytes", with([](ProductLaunch& p) { p.of_eight_rows &= ~127u; })},
      {"the leading offset is rounded down to 128 bytes", with([](ProductLaunch& p) { p.of_eight_values &= ~127u; })},
      {"the swizzling's pattern begins at the start", [](const ProductLaunch& p, uint32_t n, uint32_t k) {
         ProductLaunch other = p;
         other.start = 0;
         return p.start + documented_address(other, n, k);
       }}};
}

// Exact: small whole numbers.
struct Random {
  std::mt19937 generator{11};
  float value() {
    return static_cast<float>(static_cast<int>(generator() % 15) - 7);
  }
};

template <class T>
uint16_t bits_of(float value);  // of a whole number below 256
template <>
inline uint16_t bits_of<BFloat16>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}
template <>
inline uint16_t bits_of<Float16>(float value) {
  if (value == 0) return 0;
  const uint32_t bits = bits_of<BFloat16>(value);  // 8 bits of exponent, 7 of fraction
  return static_cast<uint16_t>((bits & 0x8000u) | ((bits >> 7 & 0xffu) - 127 + 15) << 10 | (bits & 0x7fu) << 3);
}

// The name of the rule that explains the sums, the documented one if it does.
template <class T, int VALUES>
std::string rule_of(ProductLaunch p) {
  Random random;
  std::vector<float> image(kSharedBytes / 2), left(64 * 16);
  for (float& value : image) value = random.value();
  for (float& value : left) value = random.value();
  const auto packed = [](const std::vector<float>& values, auto words) {
    std::memset(words.data(), 0, words.size() * sizeof words[0]);
    std::vector<uint16_t> bits;
    for (const float value : values) bits.push_back(bits_of<T>(value));
    std::memcpy(words.data(), bits.data(), bits.size() * 2);
    return words;
  };
  const DeviceArray<uint4> on_shared(packed(image, std::vector<uint4>(image.size() / 8)));
  const DeviceArray<uint32_t> on_left(packed(left, std::vector<uint32_t>(left.size() / 2)));
  DeviceArray<float> sums(64 * 2 * VALUES);
  sums.fill(0xff);
  p.shared = on_shared.at(), p.left = on_left.at(), p.sums = sums.at();
  const auto kernel = product_kernel<T, VALUES>;
  require_success(allow_shared_memory(kernel, kSharedBytes + 1024), "shared memory");
  DDN_LAUNCH_SHARED(kernel, dim3{}, 128, kSharedBytes + 1024, nullptr, p);
  finish("a product");
  const std::vector<float> got = sums.values();
  for (const Rule& rule : rules()) {
    bool equal = true;
    for (uint32_t m = 0; m < 64 && equal; ++m)
      for (uint32_t n = 0; n < 2 * VALUES && equal; ++n) {
        float sum = 0;
        for (uint32_t k = 0; k < 16; ++k) {
          const uint32_t address = rule.address(p, n, k) / 2;
          sum += left[m * 16 + k] * (address < image.size() ? image[address] : 0);
        }
        equal = got[m * 2 * VALUES + n] == sum;
      }
    if (equal) return rule.name;
  }
  return "by no rule that is known here";
}

struct Assumption {
  const char* name;
  bool relied_on;  // by the convolution; others are for whoever must replace one
  std::function<std::string()> rule;
};

inline bool ring_holds() {
  RingLaunch p{};
  p.rounds = p.period = 41;
  Random random;
  std::vector<uint32_t> from(static_cast<size_t>(p.rounds) * kRingWords);
  for (uint32_t& word : from) word = static_cast<uint32_t>(random.generator());
  const DeviceArray<uint32_t> on_from(from);
  DeviceArray<uint32_t> sums(128 * 12);
  p.from = on_from.at(), p.sums = sums.at();
  DDN_LAUNCH_SHARED(ring_kernel, dim3{}, 256, kRingBytes, nullptr, p);
  finish("a ring of bulk copies");
  const std::vector<uint32_t> got = sums.values();
  for (size_t at = 0; at < kRingWords; ++at) {
    uint32_t sum = 0;
    for (size_t round = 0; round < static_cast<size_t>(p.rounds); ++round) sum += from[round * kRingWords + at];
    if (got[at % 128 * 12 + at / 128] != sum) return false;
  }
  return true;
}

// The rule that explains products from each of `starts` and each stride, or the first other one.
template <class T, int VALUES>
std::function<std::string()> products(std::vector<uint32_t> starts, uint32_t of_eight_values,
                                      std::vector<uint32_t> of_eight_rows, uint32_t swizzling = 0) {
  return [=] {
    for (const uint32_t start : starts)
      for (const uint32_t stride : of_eight_rows) {
        const std::string rule =
            rule_of<T, VALUES>({nullptr, nullptr, nullptr, start, of_eight_values, stride, swizzling});
        if (rule != rules()[0].name) return rule + " (start " + std::to_string(start) + ")";
      }
    return std::string(rules()[0].name);
  };
}

inline std::vector<Assumption> assumptions() {
  const std::vector<uint32_t> taps = {16, 32, 288, 304, 320, 576, 592, 608}, odd = {16, 112, 144, 208};
  const std::vector<uint32_t> rows = {128, 256, 384, 512, 640, 768, 896};
  return {
      {"bulk copies, barriers and their phases, registers handed over", true,
       [] { return std::string(ring_holds() ? rules()[0].name : "sums differ"); }},
      {"fragments; core matrices 128 bytes apart, bfloat16", true, products<BFloat16, 32>({0, 4096}, 6144, {128})},
      {"fragments; core matrices 128 bytes apart, float16", true, products<Float16, 32>({0, 4096}, 6144, {128})},
      {"a start at any 16 bytes, 64 columns", true, products<BFloat16, 32>(odd, 6144, {128})},
      {"core matrices any multiple of 16 bytes apart", true, products<BFloat16, 32>({0}, 8208, {144, 288, 416, 672})},
      {"taps of the tall tile, 160 columns", true, products<BFloat16, 80>(taps, 6416, {288})},
      {"taps of the wide tile, 64 columns", true, products<BFloat16, 32>({16, 32, 672, 688, 704, 1376}, 6800, {672})},
      {"taps of the compact tile, 80 columns", true, products<BFloat16, 40>({16, 32, 416, 432, 448, 864}, 5008, {416})},
      {"taps of the tall tile, float16", true, products<Float16, 80>(taps, 6416, {288})},
      {"swizzling of 128 bytes, aligned", false, products<BFloat16, 32>({0, 1024, 32, 64, 96}, 16, {1024}, 1)},
      {"swizzling of 64 bytes, aligned", false, products<BFloat16, 32>({0, 512, 32}, 16, {512}, 2)},
      {"swizzling of 32 bytes, aligned", false, products<BFloat16, 32>({0, 256}, 16, {256}, 3)},
      {"swizzling of 128 bytes, from any row", false, products<BFloat16, 32>(rows, 16, {1024}, 1)},
      {"swizzling of 128 bytes, from any row, rows of 10 between", false, products<BFloat16, 32>(rows, 16, {1280}, 1)},
  };
}

// Prints each, and returns how many of those relied on fail.
inline int check_assumptions() {
  int failures = 0;
  for (const Assumption& one : assumptions()) {
    const std::string rule = one.rule();
    const bool holds = rule == rules()[0].name;
    failures += one.relied_on && !holds;
    std::printf("%-10s%-62s %s\n", holds ? "holds" : one.relied_on ? "FAILS" : "not so", one.name, rule.c_str());
    std::fflush(stdout);
  }
  return failures;
}

}  // namespace ddn::probe
