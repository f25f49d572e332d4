// Which instruction sets follow from a CPU's features, for CPUs that the tests do not run on.
#define DDN_HAVE_AVX2
#define DDN_HAVE_AVX_VNNI
#define DDN_HAVE_AVX512
#define DDN_HAVE_AVX512_VNNI
#define DDN_HAVE_AVX512_BF16
#define DDN_HAVE_AMX
#include "cpu/isa.cpp"

#include <cstdio>

namespace ddn::cpu {

Features features() {
  return {};
}

bool request_amx() {
  return true;
}

}  // namespace ddn::cpu

namespace {

using ddn::cpu::Features;

// The names of what is found, in order.
std::string sets(const Features& f) {
  std::string names;
  const auto found = ddn::cpu::found_in(f);
  for (int i = 0; i < ddn::cpu::kIsas; ++i)
    if (found.isa[i]) names += std::string(ddn::cpu::name(static_cast<ddn::cpu::Isa>(i))) + " ";
  return names;
}

bool differs(const char* cpu, const Features& f, const std::string& wanted) {
  if (sets(f) == wanted) return false;
  std::fprintf(stderr, "%s: wanted %s, got %s\n", cpu, wanted.c_str(), sets(f).c_str());
  return true;
}

}  // namespace

int main() {
  const Features old{}, haswell{.avx2 = true, .fma = true, .bmi2 = true};
  Features alder_lake = haswell, skylake = haswell;
  alder_lake.avx_vnni = true;
  skylake.avx512f = skylake.avx512bw = skylake.avx512dq = skylake.avx512vl = true;
  Features ice_lake = skylake;
  ice_lake.avx512_vnni = true;
  Features zen4 = ice_lake;
  zen4.avx512_bf16 = true;
  Features sapphire_rapids = zen4;
  sapphire_rapids.avx_vnni = sapphire_rapids.amx_bf16 = true;
  Features no_fma = haswell, no_vl = zen4, bf16_alone = skylake, vnni_alone = old;
  no_fma.fma = no_vl.avx512vl = false;
  bf16_alone.avx512_bf16 = bf16_alone.amx_bf16 = vnni_alone.avx_vnni = true;
  const bool bad[] = {
      differs("before AVX2", old, "plain "),
      differs("Haswell", haswell, "plain avx2 "),
      differs("Alder Lake", alder_lake, "plain avx2 avx_vnni "),
      differs("Skylake-X", skylake, "plain avx2 avx512 "),
      differs("Ice Lake", ice_lake, "plain avx2 avx512 avx512_vnni "),
      differs("Zen 4", zen4, "plain avx2 avx512 avx512_vnni avx512_bf16 "),
      differs("Sapphire Rapids", sapphire_rapids, "plain avx2 avx_vnni avx512 avx512_vnni avx512_bf16 amx_bf16 "),
      differs("without FMA", no_fma, "plain "),
      differs("without VL", no_vl, "plain avx2 "),
      differs("BF16 without VNNI", bf16_alone, "plain avx2 avx512 "),
      differs("AVX-VNNI without AVX2", vnni_alone, "plain "),
  };
  for (const bool one : bad)
    if (one) return 1;
  std::puts("ok");
}
