// Threads of a block as fibers on one host thread, for csrc/emu: each runs until it must wait (a barrier of the block,
// an operation that all 32 lanes of its warp do together), then another runs. Blocks run one after another.
//
// What this finds beyond wrong results, in kernels that are compiled unchanged:
//   shared memory read before it was written   it is filled with 0xff, a NaN in every floating type
//   an asynchronous copy read too early        copies land when they are waited for and not before, or at once; bulk
//                                              copies at any time; until then NaN stands where they will land, which
//                                              finds one that overwrites what others still read
//   a missing barrier                          warps run in an order drawn from `seed`, some of them far ahead
//   lanes that disagree, deadlocks             die()
//   reads and writes out of bounds             under -fsanitize=address: every buffer is a heap block of its exact size
// and what warpgroup.h says of sm_90a's products and bulk copies.
// What it cannot find: races between blocks, and orders of memory weaker than that of the program.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace ddn::emu {

struct Options {
  unsigned seed = 1;          // of the order of blocks and warps
  bool eager_copies = false;  // asynchronous copies land at once
  int multiprocessors = 4;    // what the device says it has
  int capability = 80;        // likewise, 10 * major + minor
  uint64_t launches = 0;      // counted
  uint64_t products = 0;      // of warpgroups, counted by thread
};
inline Options options;

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "emulation: %s (block %u,%u,%u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
               threadIdx.x);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
  void land() const {
    from ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes);
  }
};

// A range of shared memory.
struct Range {
  size_t at, bytes;
};

// What a barrier in shared memory holds in its 8 bytes.
struct Barrier {
  int16_t arrivals, pending;
  int32_t bytes_and_phase;  // still to land, times 2; the current phase's parity

  uint32_t phase() const {
    return static_cast<uint32_t>(bytes_and_phase) & 1;
  }
  // The phase is complete when all have arrived and all bytes have landed.
  void settle();
};

// A bulk copy on its way.
struct Bulk {
  Copy copy;
  Barrier* barrier;
};

// A product begun by a lane, and what it holds of sums that are in flight.
struct Product {
  float* sums;
  const uint32_t* left;
  uint64_t right;
  int values;
  float (*widen)(uint16_t);
};
struct ProductGroup {
  std::vector<Product> products;
  bool done = false;
};

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarp = 32;

#if defined(__x86_64__)
// The registers that a call must preserve go to the stack, and the stacks change places.
using Context = void*;
extern "C" void ddn_emu_switch(void** save, void* load);
asm(R"(.text
.weak ddn_emu_switch
.type ddn_emu_switch,@function
ddn_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline void switch_context(Context& from, Context& to) {
  ddn_emu_switch(&from, to);
}
inline void start_context(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + kStackBytes) & ~uintptr_t{15});
  *--top = nullptr;  // where entry would return to; it does not
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
inline void switch_context(Context& from, Context& to) {
  swapcontext(&from, &to);
}
inline void start_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  makecontext(&context, entry, 0);
}
#endif

struct Fiber {
  enum class Wait { nothing, block, warp, some, phase };
  Context context{};
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  Wait wait = Wait::nothing;
  uint64_t generation = 0;  // of what it waits for
  bool done = false;
  std::vector<Copy> open;                // issued, of no group yet
  std::deque<std::vector<Copy>> groups;  // committed, oldest first

  unsigned some = 0;                 // the barrier of some threads that it waits for
  const Barrier* barrier = nullptr;  // the barrier whose phase it waits for
  uint32_t parity = 0;
  std::vector<Range> unfenced;                // written to shared memory, not yet seen by the asynchronous proxy
  ProductGroup begun;                         // products of no group yet
  std::deque<ProductGroup> product_groups;    // oldest first
  std::map<float*, std::vector<float>> sums;  // in flight: what they will be
  std::map<const void*, std::vector<unsigned char>> registers;  // of products, as they were at the last fence
  bool fenced = false;
  uint64_t products = 0;
};

// Some threads' barrier.
struct Some {
  unsigned arrived = 0;
  uint64_t generation = 0;
};

// Where the lanes of a warp leave their operands until all 32 are there.
struct Meeting {
  const void* in[kWarp];
  void* out[kWarp];
  unsigned arrived = 0;
  uint64_t generation = 0;
  int operation = 0;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Meeting> warps;
  unsigned threads = 0, current = 0, arrived = 0;
  uint64_t generation = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<unsigned char> seen;  // shared memory as the asynchronous proxy sees it, where the device has one
  std::vector<const Barrier*> unfenced_barriers;
  std::vector<Bulk> bulk;
  Some some[16];
  std::mt19937 random;
  Context scheduler{};
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack = nullptr;
  size_t scheduler_bytes = 0;
#endif
};
inline Block block;

inline Fiber& self() {
  return *block.fibers[block.current];
}

inline void resume(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackBytes);
#endif
  switch_context(block.scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void yield() {
  Fiber& fiber = self();
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, block.scheduler_stack, block.scheduler_bytes);
#endif
  switch_context(fiber.context, block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void fiber_entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_bytes);
#endif
  block.body(block.argument);
  if (!self().open.empty()) die("an asynchronous copy was never committed");
  if (!self().begun.products.empty() || !self().product_groups.empty()) die("products were never waited for");
  self().done = true;
  for (;;) yield();
}

inline void Barrier::settle() {
  if (pending < 0) die("more threads arrived at a barrier than it counts");
  if (pending == 0 && bytes_and_phase >> 1 == 0) pending = arrivals, bytes_and_phase ^= 1;
}

// One bulk copy on its way arrives.
inline void land_bulk() {
  const size_t at = block.random() % block.bulk.size();
  const Bulk bulk = block.bulk[at];
  block.bulk.erase(block.bulk.begin() + static_cast<std::ptrdiff_t>(at));
  bulk.copy.land();
  std::memcpy(&block.seen[static_cast<size_t>(static_cast<unsigned char*>(bulk.copy.to) - block.shared)], bulk.copy.to,
              bulk.copy.bytes);
  bulk.barrier->bytes_and_phase -= 2 * static_cast<int32_t>(bulk.copy.bytes);
  bulk.barrier->settle();
}

// What this thread has written to shared memory by ordinary means, the asynchronous proxy does not see yet.
inline void wrote(const void* at, size_t bytes) {
  if (block.seen.empty()) return;
  const size_t offset = static_cast<size_t>(static_cast<const unsigned char*>(at) - block.shared);
  std::memset(&block.seen[offset], 0xff, bytes);
  self().unfenced.push_back({offset, bytes});
}

inline bool can_run(const Fiber& fiber, const Meeting& warp) {
  if (fiber.done) return false;
  if (fiber.wait == Fiber::Wait::block) return block.generation != fiber.generation;
  if (fiber.wait == Fiber::Wait::warp) return warp.generation != fiber.generation;
  if (fiber.wait == Fiber::Wait::some) return block.some[fiber.some].generation != fiber.generation;
  if (fiber.wait == Fiber::Wait::phase) return fiber.barrier->phase() != fiber.parity;
  return true;
}

inline void start_fibers() {
  while (block.fibers.size() < block.threads) block.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < block.threads; ++i) {
    Fiber& fiber = *block.fibers[i];
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
    start_context(fiber.context, fiber.stack.get(), fiber_entry);
    fiber.wait = Fiber::Wait::nothing, fiber.done = false;
    fiber.open.clear(), fiber.groups.clear();
    fiber.unfenced.clear(), fiber.registers.clear(), fiber.sums.clear();
    fiber.fenced = false, fiber.products = 0;
  }
  block.warps.assign((block.threads + kWarp - 1) / kWarp, Meeting{});
  block.arrived = 0;
  block.seen.assign(options.capability >= 90 ? block.shared_bytes : 0, 0xff), block.unfenced_barriers.clear();
}

inline void run_block() {
  std::mt19937& random = block.random;
  start_fibers();
  for (unsigned left = block.threads; left > 0;) {
    bool progress = false;
    for (size_t turn = 0; turn < block.warps.size(); ++turn) {
      const unsigned w = static_cast<unsigned>(random() % block.warps.size());
      // a warp goes on for some steps, or as far as it can
      for (uint64_t steps = random() % 3 ? 1 + random() % 8 : UINT64_MAX; steps > 0; --steps) {
        bool any = false;
        for (unsigned i = w * kWarp; i < (w + 1) * kWarp && i < block.threads; ++i) {
          Fiber& fiber = *block.fibers[i];
          if (!can_run(fiber, block.warps[w])) continue;
          fiber.wait = Fiber::Wait::nothing;
          block.current = i, threadIdx.x = i;
          any = progress = true;
          resume(fiber);
          left -= fiber.done;
        }
        if (!any) break;
      }
    }
    while (!block.bulk.empty() && (!progress || random() % 2)) land_bulk(), progress = true;
    if (progress) continue;
    for (unsigned i = 0; i < block.threads; ++i)  // chance may have passed over those that can run
      progress |= can_run(*block.fibers[i], block.warps[i / kWarp]);
    if (!progress) die("deadlock: threads wait for different things");
  }
  if (!block.bulk.empty()) die("a bulk copy was never waited for");
  for (unsigned i = 0; i < block.threads; ++i)
    if (block.fibers[i]->products != block.fibers[i / 128 * 128]->products)
      die("warps of a warpgroup have begun different products");
}

// kernel(params) in every thread of every block of `grid`, blocks in any order; threads.y and .z are 1.
template <class Kernel, class Params>
void launch(Kernel kernel, dim3 grid, unsigned threads, size_t shared_bytes, const Params& params) {
  struct Call {
    Kernel kernel;
    const Params* params;
  } call{kernel, &params};
  block.body = [](void* at) {
    const Call& it = *static_cast<Call*>(at);
    it.kernel(*it.params);
  };
  block.argument = &call;
  block.threads = threads;
  ++options.launches;
  gridDim = grid, blockDim = {threads, 1, 1};
  block.random.seed(options.seed);
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z, begin = block.random() % (blocks + !blocks);
  for (uint64_t k = 0; k < blocks; ++k) {
    const uint64_t b = (begin + k) % blocks;
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes + !shared_bytes)) die("no memory for a block's shared memory");
    block.shared = static_cast<unsigned char*>(memory), block.shared_bytes = shared_bytes;
    std::memset(memory, 0xff, shared_bytes);
    run_block();
    std::free(memory);
  }
}

inline void barrier() {
  if (++block.arrived == block.threads) {
    block.arrived = 0;
    ++block.generation;
    return;
  }
  self().wait = Fiber::Wait::block, self().generation = block.generation;
  yield();
}

// All 32 lanes meet; the last of them does `act(meeting)` for all.
template <class Act>
void together(int operation, const void* in, void* out, Act act) {
  Meeting& warp = block.warps[block.current / kWarp];
  const unsigned lane = block.current % kWarp;
  if (warp.arrived && warp.operation != operation) die("lanes of a warp are at different operations");
  warp.operation = operation, warp.in[lane] = in, warp.out[lane] = out;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    ++warp.generation;
    act(static_cast<const Meeting&>(warp));
    return;
  }
  self().wait = Fiber::Wait::warp, self().generation = warp.generation;
  yield();
}

}  // namespace ddn::emu
