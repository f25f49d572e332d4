// The choice among a kernel's variants. Each is a file of its own, compiled for one instruction set, in a namespace of
// that name; those the compiler does not have are not built (cmake/cpu_kernels.cmake) and stand in the table as null.
#pragma once
#include "cpu/isa.h"

#ifdef DDN_HAVE_AVX2
#define DDN_AVX2(variant) variant
#else
#define DDN_AVX2(variant) nullptr
#endif
#ifdef DDN_HAVE_AVX_VNNI
#define DDN_AVX_VNNI(variant) variant
#else
#define DDN_AVX_VNNI(variant) nullptr
#endif
#ifdef DDN_HAVE_AVX512
#define DDN_AVX512(variant) variant
#else
#define DDN_AVX512(variant) nullptr
#endif
#ifdef DDN_HAVE_AVX512_VNNI
#define DDN_AVX512_VNNI(variant) variant
#else
#define DDN_AVX512_VNNI(variant) nullptr
#endif
#ifdef DDN_HAVE_AVX512_BF16
#define DDN_AVX512_BF16(variant) variant
#else
#define DDN_AVX512_BF16(variant) nullptr
#endif
#ifdef DDN_HAVE_AMX
#define DDN_AMX(variant) variant
#else
#define DDN_AMX(variant) nullptr
#endif

namespace ddn::cpu {

// T is a pointer: to a function, or to a table of them.
template <class T>
struct Variant {
  Isa isa;
  T kernel;
};

// The last of those built that `most` allows; variants from worst to best, the first always built.
template <class T, int Count>
T best_variant(const Variant<T> (&variants)[Count], Isa most) {
  T best = variants[0].kernel;
  for (const Variant<T>& variant : variants)
    if (variant.kernel && variant.isa <= most) best = variant.kernel;
  return best;
}

}  // namespace ddn::cpu
