// Instruction sets that kernels are written for, each containing those before it (but AVX-512 not AVX-VNNI), and the
// one to use here and now.
#pragma once

namespace ddn::cpu {

enum class Isa {
  plain,        // what the compiler's default target has
  avx2,         // AVX2 and FMA
  avx_vnni,     // and AVX-VNNI: what Intel's CPUs without AVX-512 have
  avx512,       // avx2 and AVX-512 F, BW, DQ, VL
  avx512_vnni,  // and AVX512_VNNI
  avx512_bf16,  // and AVX512_BF16
  amx_bf16,     // and AMX tiles with bfloat16 products
};
constexpr int kIsas = 7;

const char* name(Isa isa);

// Whether this machine has it and this library was built with it. The first call asks the Linux kernel for the
// permission to use AMX tiles.
bool has(Isa isa);

// The best this machine has, but not above the one named by the environment variable DDN_MAX_CPU_ISA, which is read on
// every call. Throws std::runtime_error where the variable names none.
Isa isa();

}  // namespace ddn::cpu
