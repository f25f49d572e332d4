#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/features.h"
#include "cpu/variants.h"

namespace ddn::cpu {
namespace {

constexpr const char* kNames[kIsas] = {"plain", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16"};

// What this library was built with.
constexpr bool kAvx2(DDN_AVX2(true)), kAvx512(DDN_AVX512(true)), kAvx512Vnni(DDN_AVX512_VNNI(true)),
    kAvx512Bf16(DDN_AVX512_BF16(true)), kAmx(DDN_AMX(true));

Isa detect() {
  const Features f = features();
  if (!kAvx2 || !f.avx2 || !f.fma) return Isa::plain;
  if (!kAvx512 || !f.avx512f || !f.avx512bw || !f.avx512dq || !f.avx512vl) return Isa::avx2;
  if (!kAvx512Vnni || !f.avx512_vnni) return Isa::avx512;
  if (!kAvx512Bf16 || !f.avx512_bf16) return Isa::avx512_vnni;
  return kAmx && f.bmi2 && f.amx_bf16 && request_amx() ? Isa::amx_bf16 : Isa::avx512_bf16;
}

Isa limit() {
  const char* wanted = std::getenv("DDN_MAX_CPU_ISA");
  if (!wanted || !*wanted) return Isa::amx_bf16;
  for (int i = 0; i < kIsas; ++i)
    if (std::string(wanted) == kNames[i]) return static_cast<Isa>(i);
  throw std::runtime_error(
      std::string("DDN_MAX_CPU_ISA must be plain, avx2, avx512, avx512_vnni, avx512_bf16 or amx_bf16, got ") + wanted);
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
