// Device primitives of warps and shared memory (sm_80 and later), beside dev.cuh: nvcc's here, the host's in emu/emu.h.
// A lane is threadIdx.x % 32. A fragment is what one lane holds of a matrix:
//   left [16,16]   word i: rows lane/4 + 8*(i%2), columns 2*(lane%4) + 8*(i/2) and the next
//   right [16,8]   word i: rows 2*(lane%4) + 8*i and the next, column lane/4
//   sums [16,8]    value i: row lane/4 + 8*(i/2), column 2*(lane%4) + i%2
#pragma once
#include "cuda/dev.cuh"

#ifndef DDN_EMU

namespace ddn {

using Shared = uint32_t;  // an address in shared memory

DDN_DEVICE Shared shared_address(const void* at) {
  return static_cast<Shared>(__cvta_generic_to_shared(at));
}
DDN_DEVICE void synchronize_block() {
  __syncthreads();
}
DDN_DEVICE void fence() {
  __threadfence();
}
DDN_DEVICE unsigned add_one(unsigned* at) {
  return atomicAdd(at, 1u);
}

DDN_DEVICE uint4 load_shared16(Shared at) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}
DDN_DEVICE uint32_t load_shared4(Shared at) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}
DDN_DEVICE uint32_t load_shared2(Shared at) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
  return v;
}
DDN_DEVICE void store_shared16(Shared at, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DDN_DEVICE void store_shared4(Shared at, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}
DDN_DEVICE void store_shared2(Shared at, uint32_t v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(static_cast<uint16_t>(v)) : "memory");
}

// The same value, but what is computed from it is computed here: a compiler that does so before a loop, and keeps it,
// takes registers from the products.
DDN_DEVICE int not_before(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// BYTES from global to shared memory, both at such a boundary, without waiting; zeros where not `wanted`.
template <int BYTES>
DDN_DEVICE void copy_async(Shared to, const void* from, bool wanted) {
  const int bytes = wanted ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(bytes), "n"(BYTES)
                 : "memory");
}
// The copies since the last commit become a group, perhaps an empty one.
DDN_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Of this thread's groups all but the newest PENDING have landed; for others to see them takes a barrier more.
template <int PENDING>
DDN_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DDN_DEVICE uint32_t shuffle_xor(uint32_t value, unsigned lanes) {
  return __shfl_xor_sync(0xffffffffu, value, static_cast<int>(lanes));
}
DDN_DEVICE float shuffle_xor(float value, unsigned lanes) {
  return __shfl_xor_sync(0xffffffffu, value, static_cast<int>(lanes));
}

// Bit l: what lane l says.
DDN_DEVICE uint32_t ballot(bool yes) {
  return __ballot_sync(0xffffffffu, yes);
}
DDN_DEVICE int count_bits(uint32_t bits) {
  return __popc(bits);
}

// A left fragment. Lane l names the 16 bytes of row l % 16, columns 8*(l/16) to +7.
DDN_DEVICE void load_matrices(uint32_t (&fragment)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row));
}

// sums += left @ right. T: BFloat16 or Float16.
template <class T>
DDN_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#define DDN_MULTIPLY_ADD(type, suffix)                                                                     \
  template <>                                                                                              \
  DDN_DEVICE void multiply_add<type>(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." suffix "." suffix                                \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                          \
  }
DDN_MULTIPLY_ADD(BFloat16, "bf16")
DDN_MULTIPLY_ADD(Float16, "f16")
#undef DDN_MULTIPLY_ADD

// Two floats to 16 bits each, to nearest, ties to even; `low` in the low half.
template <class T>
DDN_DEVICE uint32_t narrow_two(float low, float high);
template <>
DDN_DEVICE uint32_t narrow_two<BFloat16>(float low, float high) {
  uint32_t two;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  return two;
}
template <>
DDN_DEVICE uint32_t narrow_two<Float16>(float low, float high) {
  uint32_t two;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  return two;
}

template <class T>
DDN_DEVICE float widen(uint16_t bits);
template <>
DDN_DEVICE float widen<BFloat16>(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
template <>
DDN_DEVICE float widen<Float16>(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

}  // namespace ddn
#endif
