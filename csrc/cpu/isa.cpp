#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/features.h"
#include "cpu/variants.h"

namespace ddn::cpu {
namespace {

constexpr const char* kNames[kIsas] = {"plain", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16"};

// What this library was built with.
constexpr bool kAvx2(DDN_AVX2(true)), kAvxVnni(DDN_AVX_VNNI(true)), kAvx512(DDN_AVX512(true)),
    kAvx512Vnni(DDN_AVX512_VNNI(true)), kAvx512Bf16(DDN_AVX512_BF16(true)), kAmx(DDN_AMX(true));

struct Found {
  bool isa[kIsas];
};

Found found_in(const Features& f) {
  const bool avx2 = kAvx2 && f.avx2 && f.fma, avx_vnni = avx2 && kAvxVnni && f.avx_vnni;
  const bool avx512 = avx2 && kAvx512 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl;
  const bool avx512_vnni = avx512 && kAvx512Vnni && f.avx512_vnni;
  const bool avx512_bf16 = avx512_vnni && kAvx512Bf16 && f.avx512_bf16;
  const bool amx_bf16 = avx512_bf16 && kAmx && f.bmi2 && f.amx_bf16;
  return {{true, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx_bf16}};
}

Found detect() {
  Found found = found_in(features());
  bool& amx_bf16 = found.isa[static_cast<int>(Isa::amx_bf16)];
  amx_bf16 = amx_bf16 && request_amx();
  return found;
}

Isa limit() {
  const char* wanted = std::getenv("DDN_MAX_CPU_ISA");
  if (!wanted || !*wanted) return Isa::amx_bf16;
  for (int i = 0; i < kIsas; ++i)
    if (std::string(wanted) == kNames[i]) return static_cast<Isa>(i);
  throw std::runtime_error(
      std::string("DDN_MAX_CPU_ISA must be plain, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16 or amx_bf16, got ") +
      wanted);
}

}  // namespace

const char* name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

bool has(Isa isa) {
  static const Found found = detect();
  return found.isa[static_cast<int>(isa)];
}

Isa isa() {
  int most = static_cast<int>(limit());
  while (!has(static_cast<Isa>(most))) --most;  // plain is always there
  return static_cast<Isa>(most);
}

}  // namespace ddn::cpu
