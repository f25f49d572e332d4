#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/features.h"

namespace ddn::cpu {
namespace {

constexpr const char* kNames[kIsas] = {"plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"};

// What this library was built with (cmake/cpu_kernels.cmake).
#ifdef DDN_HAVE_AVX2
constexpr bool kAvx2 = true;
#else
constexpr bool kAvx2 = false;
#endif
#ifdef DDN_HAVE_AVX512
constexpr bool kAvx512 = true;
#else
constexpr bool kAvx512 = false;
#endif
#ifdef DDN_HAVE_AVX512_BF16
constexpr bool kAvx512Bf16 = true;
#else
constexpr bool kAvx512Bf16 = false;
#endif
#ifdef DDN_HAVE_AMX
constexpr bool kAmx = true;
#else
constexpr bool kAmx = false;
#endif

Isa detect() {
  const Features f = features();
  if (!kAvx2 || !f.avx2 || !f.fma) return Isa::plain;
  if (!kAvx512 || !f.avx512f || !f.avx512bw || !f.avx512dq || !f.avx512vl) return Isa::avx2;
  if (!kAvx512Bf16 || !f.avx512_bf16) return Isa::avx512;
  return kAmx && f.bmi2 && f.amx_bf16 && request_amx() ? Isa::amx_bf16 : Isa::avx512_bf16;
}

Isa limit() {
  const char* wanted = std::getenv("DDN_MAX_CPU_ISA");
  if (!wanted || !*wanted) return Isa::amx_bf16;
  for (int i = 0; i < kIsas; ++i)
    if (std::string(wanted) == kNames[i]) return static_cast<Isa>(i);
  throw std::runtime_error(std::string("DDN_MAX_CPU_ISA must be plain, avx2, avx512, avx512_bf16 or amx_bf16, got ") +
                           wanted);
}

}  // namespace

const char* name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

Isa machine_isa() {
  static const Isa found = detect();
  return found;
}

Isa isa() {
  const Isa most = limit(), found = machine_isa();
  return found < most ? found : most;
}

}  // namespace ddn::cpu
