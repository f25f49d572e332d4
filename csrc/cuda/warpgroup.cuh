// Device primitives of sm_90a beside warp.cuh: nvcc's here, the host's in emu/warpgroup.h. Barriers in shared memory
// that count arrivals and bytes, bulk copies that report to them, and products of a warpgroup (128 threads, 4 warps):
//   sums [64,N] += left [64,16] @ right [16,N]
//   left    registers: warp w of the group holds rows 16*w to +15, as warp.cuh's left fragment
//   right   shared memory, named by a descriptor; 8 rows n of 16 bytes (8 values along k) are a core matrix
//   sums    value 4*j + i: row 16*w + lane/4 + 8*(i/2), column 8*j + 2*(lane%4) + i%2
// Products and bulk copies go by the asynchronous proxy: what threads wrote to shared memory they see only after
// fence_for_products() by the writer, and then a barrier. sums and left must not be touched until products are waited
// for.
#pragma once
#include "cuda/warp.cuh"

namespace ddn {

// A right side in shared memory: row n, values 8*h to +7 of its 16 lie at start + n % 8 * 16 + n / 8 * of_eight_rows +
// h * of_eight_values. Without swizzling any multiple of 16 bytes will do for each: `start` may be any row's address.
// Bits (PTX ISA, matrix descriptor): 0..13 start, 16..29 leading offset (along k), 32..45 stride offset (along n), each
// in units of 16 bytes; 49..51 base offset; 62..63 swizzling: 0 none, 1, 2, 3 of 128, 64, 32 bytes.
DDN_DEVICE constexpr uint64_t descriptor_of(uint32_t start, uint32_t of_eight_values, uint32_t of_eight_rows,
                                            uint32_t swizzling = 0) {
  return static_cast<uint64_t>((start & 0x3ffff) >> 4) | static_cast<uint64_t>(of_eight_values >> 4) << 16 |
         static_cast<uint64_t>(of_eight_rows >> 4) << 32 | static_cast<uint64_t>(swizzling) << 62;
}

}  // namespace ddn

#ifdef DDN_EMU
#include "emu/warpgroup.h"
#else

namespace ddn {

DDN_DEVICE uint32_t shared_offset(Shared at) {
  return at;
}

// A barrier is 8 bytes at an 8-byte boundary. It completes a phase when `arrivals` threads have arrived and all
// expected bytes have landed; phases are counted from 0 and told apart by their parity.
DDN_DEVICE void init_barrier(Shared barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// By the thread that made them, before a barrier of the block: bulk copies will find them.
DDN_DEVICE void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DDN_DEVICE void arrive(Shared barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DDN_DEVICE void arrive_expecting(Shared barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the current phase has not this parity: that is, until the phase of this parity is complete, if no thread runs
// more than one phase ahead. A new barrier is in phase 0; waiting for parity 1 returns at once.
DDN_DEVICE void wait_for_phase(Shared barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// `bytes`, a multiple of 16, from global to shared memory, both at such a boundary; they count towards `barrier`.
DDN_DEVICE void copy_bulk(Shared to, const void* from, int bytes, Shared barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// What this thread wrote to shared memory so far, the products will see.
DDN_DEVICE void fence_for_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A barrier of `THREADS` threads; the block's own is number 0.
template <int NUMBER, int THREADS>
DDN_DEVICE void synchronize_some() {
  asm volatile("bar.sync %0, %1;" ::"n"(NUMBER), "n"(THREADS) : "memory");
}
DDN_DEVICE void synchronize_warp() {
  __syncwarp();
}

// The same value, but computed before what follows: a compiler knows of no order between ordinary instructions and the
// fences and waits of products.
DDN_DEVICE void settle(uint32_t& value) {
  asm volatile("" : "+r"(value)::"memory");
}
DDN_DEVICE void settle(float& value) {
  asm volatile("" : "+f"(value)::"memory");
}

// Registers of a thread from here on; all warps of a warpgroup, once.
template <int COUNT>
DDN_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DDN_DEVICE void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Before products whose sums or left side a thread has touched since the last fence.
DDN_DEVICE void fence_registers() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// The products since the last commit become a group.
DDN_DEVICE void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All groups but the newest PENDING are done.
template <int PENDING>
DDN_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// sums += left @ right, begun; 2 * VALUES columns. T: BFloat16 or Float16.
template <class T, int VALUES>
struct WarpgroupProduct;

// Ten operands "%d0, ... %d9" and their registers; d is empty for the first ten.
#define DDN_TEN_NAMES(d) \
  "%" #d "0, %" #d "1, %" #d "2, %" #d "3, %" #d "4, %" #d "5, %" #d "6, %" #d "7, %" #d "8, %" #d "9"
#define DDN_TEN_SUMS(d)                                                                                       \
  "+f"(sums[d##0]), "+f"(sums[d##1]), "+f"(sums[d##2]), "+f"(sums[d##3]), "+f"(sums[d##4]), "+f"(sums[d##5]), \
      "+f"(sums[d##6]), "+f"(sums[d##7]), "+f"(sums[d##8]), "+f"(sums[d##9])
#define DDN_WARPGROUP_PRODUCT(type, suffix, values, columns, names, left_names, right_name, ...)                   \
  template <>                                                                                                      \
  struct WarpgroupProduct<type, values> {                                                                          \
    static DDN_DEVICE void begin(float (&sums)[values], const uint32_t (&left)[4], uint64_t right) {               \
      asm volatile("{\n.reg .pred yes;\nsetp.eq.b32 yes, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" columns         \
                   "k16.f32." suffix "." suffix " {" names "}, {" left_names "}, " right_name ", yes, 1, 1, 0;\n}" \
                   : __VA_ARGS__                                                                                   \
                   : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));                          \
    }                                                                                                              \
  };
#define DDN_WARPGROUP_PRODUCTS(type, suffix)                                                                           \
  DDN_WARPGROUP_PRODUCT(                                                                                               \
      type, suffix, 32, "64", DDN_TEN_NAMES() ", " DDN_TEN_NAMES(1) ", " DDN_TEN_NAMES(2) ", %30, %31",                \
      "%32, %33, %34, %35", "%36", DDN_TEN_SUMS(), DDN_TEN_SUMS(1), DDN_TEN_SUMS(2), "+f"(sums[30]), "+f"(sums[31]))   \
  DDN_WARPGROUP_PRODUCT(                                                                                               \
      type, suffix, 40, "80", DDN_TEN_NAMES() ", " DDN_TEN_NAMES(1) ", " DDN_TEN_NAMES(2) ", " DDN_TEN_NAMES(3),       \
      "%40, %41, %42, %43", "%44", DDN_TEN_SUMS(), DDN_TEN_SUMS(1), DDN_TEN_SUMS(2), DDN_TEN_SUMS(3))                  \
  DDN_WARPGROUP_PRODUCT(                                                                                               \
      type, suffix, 80, "160",                                                                                         \
      DDN_TEN_NAMES() ", " DDN_TEN_NAMES(1) ", " DDN_TEN_NAMES(2) ", " DDN_TEN_NAMES(3) ", " DDN_TEN_NAMES(            \
          4) ", " DDN_TEN_NAMES(5) ", " DDN_TEN_NAMES(6) ", " DDN_TEN_NAMES(7),                                        \
      "%80, %81, %82, %83", "%84", DDN_TEN_SUMS(), DDN_TEN_SUMS(1), DDN_TEN_SUMS(2), DDN_TEN_SUMS(3), DDN_TEN_SUMS(4), \
      DDN_TEN_SUMS(5), DDN_TEN_SUMS(6), DDN_TEN_SUMS(7))
DDN_WARPGROUP_PRODUCTS(BFloat16, "bf16")
DDN_WARPGROUP_PRODUCTS(Float16, "f16")
#undef DDN_WARPGROUP_PRODUCTS
#undef DDN_WARPGROUP_PRODUCT
#undef DDN_TEN_SUMS
#undef DDN_TEN_NAMES

template <class T, int VALUES>
DDN_DEVICE void begin_product(float (&sums)[VALUES], const uint32_t (&left)[4], uint64_t right) {
  WarpgroupProduct<T, VALUES>::begin(sums, left, right);
}

}  // namespace ddn
#endif
