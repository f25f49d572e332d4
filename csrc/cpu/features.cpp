// A feature counts when CPUID lists it and XCR0 says that the operating system saves its registers; AMX also needs the
// Linux kernel's permission. Never decided by model name. features() only detects: it asks for no permission. Where
// tiles are emulated (csrc/emu/amx.h) every machine has AMX whose vectors serve the kernels around them.
#include "cpu/features.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ddn::cpu {
namespace {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros when the leaf does not exist
  return r;
}

constexpr bool bit(uint64_t word, int n) {
  return word >> n & 1;
}

// XCR0: the register state that the operating system saves on a context switch.
uint64_t saved_state() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

constexpr int kGetSupported = 0x1021, kGetPermitted = 0x1022;  // arch_prctl: ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_PERM
constexpr int kRequest = 0x1023;                               // ARCH_REQ_XCOMP_PERM, which takes the number itself
constexpr int kTileData = 18;

bool tile_data(int request) {
#if defined(__linux__)
  uint64_t mask = 0;
  return syscall(SYS_arch_prctl, request, &mask) == 0 && bit(mask, kTileData);
#else
  (void)request;
  return false;
#endif
}

}  // namespace

Features features() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  const uint64_t saved = saved_state();
  const bool ymm = (saved & kYmm) == kYmm, zmm = (saved & kZmm) == kZmm, tiles = (saved & kTiles) == kTiles;
  const Registers base = cpuid(7, 0), more = cpuid(7, 1);
  Features f;
  f.avx2 = ymm && bit(base.ebx, 5);
  f.fma = ymm && bit(cpuid(1, 0).ecx, 12);
  f.avx_vnni = ymm && base.eax >= 1 && bit(more.eax, 4);
  f.bmi2 = bit(base.ebx, 8);
  f.avx512f = zmm && bit(base.ebx, 16);
  f.avx512bw = zmm && bit(base.ebx, 30);
  f.avx512dq = zmm && bit(base.ebx, 17);
  f.avx512vl = zmm && bit(base.ebx, 31);
  f.avx512_vnni = zmm && bit(base.ecx, 11);
  f.avx512_bf16 = zmm && base.eax >= 1 && bit(more.eax, 5);
  f.amx_bf16 = tiles && bit(base.edx, 22) && bit(base.edx, 24) && tile_data(kGetSupported);
  f.amx_permission = f.amx_bf16 && tile_data(kGetPermitted);
#ifdef DDN_EMULATE_AMX
  f.amx_bf16 = f.amx_permission = f.avx512_bf16;
#endif
  return f;
}

bool request_amx() {
#if defined(DDN_EMULATE_AMX)
  return true;
#elif defined(__linux__)
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace ddn::cpu

#else

namespace ddn::cpu {

Features features() {
  return {};
}

bool request_amx() {
  return false;
}

}  // namespace ddn::cpu

#endif
