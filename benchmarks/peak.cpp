// Ceilings of this machine, measured: what its multiply-add units do with operands in registers, and what its memory
// delivers to readers. Prints JSON: TFLOP/s of each instruction set asked for (null where it may not be used;
// avx_vnni and avx512_vnni: of 16-bit integers), and dram_read_gb_s. Each figure is the best of several tries with all
// threads at work.
//
//   peak THREADS MILLISECONDS MEGABYTES [plain|avx2|avx_vnni|avx512|avx512_vnni|avx512_bf16|amx_bf16 ...]
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kTries = 7;

std::atomic<float> sink;    // keeps results alive
volatile float one = 1.0f;  // unknown to the compiler

#if defined(__x86_64__)
#define DDN_TARGET(names) __attribute__((target(names)))
#else
#define DDN_TARGET(names)  // plain alone
#endif

// Independent chains of multiply-adds in registers, enough of them to hide the latency of one (4 or 5 cycles, two
// units). A function a target: an instruction set is only allowed inside it. Returns floating-point operations.
#define DEFINE_FMA_LOOP(NAME, TARGET, LANES, CHAINS)                                                \
  DDN_TARGET(TARGET) double NAME(long rounds) {                                                     \
    typedef float Vector __attribute__((vector_size(4 * LANES)));                                   \
    const Vector scale = Vector{} + one * 0.999f, step = Vector{} + 0.001f;                         \
    Vector chain[CHAINS];                                                                           \
    _Pragma("GCC unroll 32") for (int i = 0; i < CHAINS; ++i) chain[i] = step * float(i);           \
    for (long r = 0; r < rounds; ++r)                                                               \
      _Pragma("GCC unroll 32") for (int i = 0; i < CHAINS; ++i) chain[i] = chain[i] * scale + step; \
    Vector sum = step;                                                                              \
    _Pragma("GCC unroll 32") for (int i = 0; i < CHAINS; ++i) sum += chain[i];                      \
    sink = sum[0];                                                                                  \
    return 2.0 * LANES * CHAINS * rounds;                                                           \
  }
DEFINE_FMA_LOOP(fma_plain, "sse2", 4, 10)
#if defined(__x86_64__)
DEFINE_FMA_LOOP(fma_avx2, "avx2,fma", 8, 12)
DEFINE_FMA_LOOP(fma_avx512, "avx512f", 16, 24)

// Chains of pairs of 16-bit values, multiplied and added into 32 bits: STEP of a chain, one vector of NUMBERs.
#define DEFINE_PAIRS_LOOP(NAME, TARGET, BYTES, CHAINS, NUMBER, STEP)                                  \
  DDN_TARGET(TARGET) double NAME(long rounds) {                                                       \
    constexpr int kChains = CHAINS;                                                                   \
    typedef NUMBER Vector __attribute__((vector_size(BYTES)));                                        \
    Vector chain[kChains];                                                                            \
    _Pragma("GCC unroll 32") for (int i = 0; i < kChains; ++i) chain[i] = Vector{} + NUMBER(one * i); \
    for (long r = 0; r < rounds; ++r)                                                                 \
      _Pragma("GCC unroll 32") for (int i = 0; i < kChains; ++i) chain[i] = (Vector)STEP(chain[i]);   \
    Vector sum = chain[0];                                                                            \
    _Pragma("GCC unroll 32") for (int i = 1; i < kChains; ++i) sum += chain[i];                       \
    sink = float(sum[0]);                                                                             \
    return 1.0 * BYTES * kChains * rounds;                                                            \
  }
#define STEP_VEX(chain) \
  _mm256_dpwssd_avx_epi32((__m256i)(chain), _mm256_set1_epi32(0x00010001), _mm256_set1_epi32(0x0001ffff))
#define STEP_VNNI(chain) \
  _mm512_dpwssd_epi32((__m512i)(chain), _mm512_set1_epi32(0x00010001), _mm512_set1_epi32(0x0001ffff))
#define STEP_BF16(chain) \
  _mm512_dpbf16_ps((__m512)(chain), (__m512bh)_mm512_set1_epi32(0x3f803f80), (__m512bh)_mm512_set1_epi32(0x3f80bf80))
DEFINE_PAIRS_LOOP(fma_avx_vnni, "avx2,avxvnni", 32, 12, int, STEP_VEX)
DEFINE_PAIRS_LOOP(fma_avx512_vnni, "avx512f,avx512vnni", 64, 24, int, STEP_VNNI)
DEFINE_PAIRS_LOOP(fma_avx512_bf16, "avx512f,avx512bf16", 64, 24, float, STEP_BF16)

// 16x32 by 32x16 tile products, random operands: a tile unit is faster on zeros.
__attribute__((target("amx-tile,amx-bf16"))) double fma_amx_bf16(long rounds) {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) uint16_t operands[4][16][32];
  alignas(64) float result[16][16];
  uint32_t random = 1;
  for (auto& tile : operands)
    for (auto& row : tile)
      for (uint16_t& value : row) {
        random = random * 1664525u + 1013904223u;
        value = uint16_t((random >> 31 << 15) | 0x3f00 | (random >> 20 & 0xff));  // +-0.5 .. +-2
      }
  asm volatile("ldtilecfg %0" ::"m"(config));  // the intrinsic of some compilers declares 8 bytes as read
  _tile_loadd(4, operands[0], 64);
  _tile_loadd(5, operands[1], 64);
  _tile_loadd(6, operands[2], 64);
  _tile_loadd(7, operands[3], 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, result, 64);
  _tile_release();
  sink = result[0][0];
  return 4 * 2.0 * 16 * 16 * 32 * rounds;
}

bool request_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

using Loop = double (*)(long);

// Of an instruction set; null where it may not be used.
Loop loop_of(const std::string& isa) {
  if (isa == "plain") return fma_plain;
#if defined(__x86_64__)
  if (isa == "avx2") return fma_avx2;
  if (isa == "avx_vnni") return fma_avx_vnni;
  if (isa == "avx512") return fma_avx512;
  if (isa == "avx512_vnni") return fma_avx512_vnni;
  if (isa == "avx512_bf16") return fma_avx512_bf16;
  if (isa == "amx_bf16" && request_amx()) return fma_amx_bf16;
#endif
  return nullptr;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Seconds from the moment all threads stand ready until the last has finished work(thread).
double run(int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t)
    team.emplace_back([&, t] {
      ++ready;
      while (!go) std::this_thread::yield();
      work(t);
    });
  while (ready < threads) std::this_thread::yield();
  const auto start = Clock::now();
  go = true;
  for (auto& thread : team) thread.join();
  return seconds_since(start);
}

double tera_flops(Loop loop, int threads, double seconds) {
  long rounds = 1000;
  for (;; rounds *= 2) {  // as many as take the time asked for
    const auto start = Clock::now();
    loop(rounds);
    if (seconds_since(start) >= seconds) break;
  }
  const double operations = loop(1) * rounds * threads;
  double best = 0;
  for (int i = 0; i < kTries; ++i) best = std::max(best, operations / run(threads, [&](int) { loop(rounds); }));
  return best / 1e12;
}

typedef uint64_t Words __attribute__((vector_size(16)));

void read_all(const Words* from, size_t count) {
  Words sum[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8)
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) sum[k] ^= from[i + k];
  for (int k = 1; k < 8; ++k) sum[0] ^= sum[k];
  sink = float(sum[0][0]);
}

// GB/s that all threads together read, each from its own part of a buffer larger than the caches.
double read_bandwidth(int threads, size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  madvise(memory, bytes, MADV_HUGEPAGE);
  Words* words = static_cast<Words*>(memory);
  const size_t part = bytes / sizeof(Words) / threads;
  run(threads, [&](int t) { std::fill(words + t * part, words + (t + 1) * part, Words{1, 2}); });
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const double seconds = run(threads, [&](int t) { read_all(words + t * part, part); });
    best = std::max(best, double(part) * threads * sizeof(Words) / seconds);
  }
  munmap(memory, bytes);
  return best / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s THREADS MILLISECONDS MEGABYTES [ISA ...]\n", argv[0]);
    return 2;
  }
  const int threads = std::max(1, std::atoi(argv[1]));
  const double seconds = std::atof(argv[2]) / 1e3;
  const size_t bytes = size_t(std::max(1, std::atoi(argv[3]))) << 20;
  std::printf("{");
  for (int i = 4; i < argc; ++i) {
    const std::string isa = argv[i];
    if (const Loop loop = loop_of(isa))
      std::printf("\"%s\": %.4g, ", isa.c_str(), tera_flops(loop, threads, seconds));
    else
      std::printf("\"%s\": null, ", isa.c_str());
    std::fflush(stdout);
  }
  std::printf("\"dram_read_gb_s\": %.4g}\n", read_bandwidth(threads, bytes));
}
