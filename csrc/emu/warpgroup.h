// Host back end of cuda/warpgroup.cuh. What it finds, beyond what fibers.h says:
//   a bulk copy read too early         it lands at any time until its barrier has counted it, in any order
//   bytes or arrivals miscounted       deadlock, or die()
//   sums read before they are done     they are NaN from the product's beginning until a wait covers it
//   left sides changed too early       they are read when the product runs: at the commit or at the wait, by chance
//   right sides changed too early      likewise; each warp of a warpgroup runs its share in its own time
//   a missing fence of registers       those that were touched since the last one are remembered
//   a missing fence of the proxies     products read a copy of shared memory that ordinary writes fill with NaN, and
//                                      the writer's fence with what was written
//   wrong descriptors                  they are decoded bit by bit; addresses begin at 1024, as a block's do
#pragma once
#include "emu/emu.h"

namespace ddn {

namespace emu {

constexpr uint32_t kSharedBegin = 1024;

inline Barrier& barrier_at(Shared at) {
  require_aligned(at, 8);
  return *reinterpret_cast<Barrier*>(at);
}

// The address of value k of row n of the right side.
inline uint32_t right_address(uint64_t descriptor, uint32_t n, uint32_t k) {
  const auto field = [descriptor](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), of_eight_values = field(16), of_eight_rows = field(32);
  const uint32_t swizzling = static_cast<uint32_t>(descriptor >> 62);
  if (descriptor >> 49 & 7) die("a descriptor with a base offset");
  if (swizzling == 0) return start + n % 8 * 16 + n / 8 * of_eight_rows + k / 8 * of_eight_values + k % 8 * 2;
  const uint32_t row = 256 >> swizzling, parts = row / 16;  // 128, 64, 32 bytes
  const uint32_t address = start + n % 8 * row + n / 8 * of_eight_rows + k * 2;
  return address ^ (address >> 7 & (parts - 1)) << 4;
}

inline uint16_t right_value(uint64_t descriptor, uint32_t n, uint32_t k) {
  const uint32_t address = right_address(descriptor, n, k) - kSharedBegin;
  if (address + 2 > block.seen.size()) die("a right side outside shared memory");
  uint16_t bits;
  std::memcpy(&bits, &block.seen[address], sizeof bits);
  return bits;
}

// This warp's share, 16 rows, of one product; lane[l] is lane l's.
inline void run_product(const Product* const (&lane)[kWarp], Fiber* const (&fiber)[kWarp]) {
  const Product& one = *lane[0];
  const auto widen = one.widen;
  float left[16][16], right[16];
  for (unsigned l = 0; l < kWarp; ++l) {
    if (lane[l]->right != one.right || lane[l]->values != one.values || lane[l]->widen != widen)
      die("lanes of a warp have begun different products");
    for (unsigned i = 0; i < 4; ++i)
      for (unsigned e = 0; e < 2; ++e)
        left[l / 4 + i % 2 * 8][l % 4 * 2 + e + i / 2 * 8] = widen(static_cast<uint16_t>(lane[l]->left[i] >> 16 * e));
  }
  float* sums[kWarp];
  for (unsigned l = 0; l < kWarp; ++l) sums[l] = fiber[l]->sums.at(lane[l]->sums).data();
  for (unsigned n = 0; n < static_cast<unsigned>(one.values) * 2; ++n) {
    for (unsigned k = 0; k < 16; ++k) right[k] = widen(right_value(one.right, n, k));
    for (unsigned m = 0; m < 16; ++m) {
      float sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += left[m][k] * right[k];
      sums[m % 8 * 4 + n % 8 / 2][n / 8 * 4 + m / 8 * 2 + n % 2] += sum;
    }
  }
}

// The warp's groups up to the last that may be pending run, where they have not yet. Fibers of the warp are in `in`.
inline void run_groups(const Meeting& warp, size_t pending) {
  Fiber* fiber[kWarp];
  for (unsigned l = 0; l < kWarp; ++l) {
    fiber[l] = static_cast<Fiber*>(const_cast<void*>(warp.in[l]));
    if (fiber[l]->product_groups.size() != fiber[0]->product_groups.size())
      die("lanes of a warp have committed different groups");
  }
  const size_t groups = fiber[0]->product_groups.size();
  for (size_t g = 0; g + pending < groups; ++g) {
    if (fiber[0]->product_groups[g].done) continue;
    for (size_t k = 0; k < fiber[0]->product_groups[g].products.size(); ++k) {
      const Product* lane[kWarp];
      for (unsigned l = 0; l < kWarp; ++l) {
        if (fiber[l]->product_groups[g].products.size() <= k) die("lanes of a warp have begun different products");
        lane[l] = &fiber[l]->product_groups[g].products[k];
      }
      run_product(lane, fiber);
    }
    for (Fiber* f : fiber) f->product_groups[g].done = true;
  }
}

inline std::vector<unsigned char> bytes_of(const void* at, size_t bytes) {
  const auto* const first = static_cast<const unsigned char*>(at);
  return {first, first + bytes};
}

// A register array of a product must be as it was at the last fence; one that was not known then may be anything.
inline void require_fenced(const void* at, size_t bytes) {
  const auto [known, is_new] = self().registers.try_emplace(at, bytes_of(at, bytes));
  if (!is_new && known->second != bytes_of(at, bytes)) die("registers changed between a fence and a product");
}

}  // namespace emu

inline uint32_t shared_offset(Shared at) {
  return static_cast<uint32_t>(at - emu::block.shared) + emu::kSharedBegin;
}

inline void init_barrier(Shared at, int arrivals) {
  emu::barrier_at(at) = {static_cast<int16_t>(arrivals), static_cast<int16_t>(arrivals), 0};
  if (emu::block.seen.empty()) emu::die("a device without bulk copies");
  emu::block.unfenced_barriers.push_back(&emu::barrier_at(at));
}
inline void fence_barriers() {
  emu::block.unfenced_barriers.clear();
}
inline void arrive(Shared at) {
  --emu::barrier_at(at).pending;
  emu::barrier_at(at).settle();
}
inline void arrive_expecting(Shared at, int bytes) {
  emu::barrier_at(at).bytes_and_phase += 2 * bytes;
  arrive(at);
}
inline void wait_for_phase(Shared at, uint32_t parity) {
  emu::Fiber& fiber = emu::self();
  if (emu::barrier_at(at).phase() != parity) return;
  fiber.wait = emu::Fiber::Wait::phase, fiber.barrier = &emu::barrier_at(at), fiber.parity = parity;
  emu::yield();
}

inline void copy_bulk(Shared to, const void* from, int bytes, Shared barrier) {
  emu::require_aligned(to);
  emu::require_aligned(from);
  if (bytes % 16) emu::die("a bulk copy of bytes that are no multiple of 16");
  for (const emu::Barrier* unfenced : emu::block.unfenced_barriers)
    if (unfenced == &emu::barrier_at(barrier)) emu::die("a bulk copy to a barrier that was not fenced");
  std::memset(to, 0xff, static_cast<size_t>(bytes));
  emu::block.bulk.push_back({{to, from, static_cast<size_t>(bytes)}, &emu::barrier_at(barrier)});
  if (emu::options.eager_copies) emu::land_bulk();
}

inline void fence_for_products() {
  for (const emu::Range& range : emu::self().unfenced)
    std::memcpy(&emu::block.seen[range.at], emu::block.shared + range.at, range.bytes);
  emu::self().unfenced.clear();
}

template <int NUMBER, int THREADS>
void synchronize_some() {
  static_assert(NUMBER > 0 && NUMBER < 16 && THREADS % emu::kWarp == 0);
  emu::Some& some = emu::block.some[NUMBER];
  if (++some.arrived == THREADS) {
    some.arrived = 0;
    ++some.generation;
    return;
  }
  emu::Fiber& fiber = emu::self();
  fiber.wait = emu::Fiber::Wait::some, fiber.some = NUMBER, fiber.generation = some.generation;
  emu::yield();
}
inline void synchronize_warp() {
  emu::together(5, nullptr, nullptr, [](const emu::Meeting&) {});
}

inline void settle(uint32_t&) {
}
inline void settle(float&) {
}

template <int COUNT>
void take_registers() {
}
template <int COUNT>
void leave_registers() {
}

inline void fence_registers() {
  emu::Fiber& fiber = emu::self();
  fiber.fenced = true;
  for (auto& [at, bytes] : fiber.registers) bytes = emu::bytes_of(at, bytes.size());
}

template <class T, int VALUES>
void begin_product(float (&sums)[VALUES], const uint32_t (&left)[4], uint64_t right) {
  static_assert(VALUES % 4 == 0 && VALUES <= 128);
  emu::Fiber& fiber = emu::self();
  if (!fiber.fenced) emu::die("products begun before registers were fenced");
  emu::require_fenced(left, sizeof left);
  const auto [shadow, is_new] = fiber.sums.try_emplace(sums, sums, sums + VALUES);
  if (is_new) {
    emu::require_fenced(sums, sizeof sums);
    std::memset(sums, 0xff, sizeof sums);
    fiber.registers[sums] = emu::bytes_of(sums, sizeof sums);
  }
  fiber.begun.products.push_back({sums, left, right, VALUES, emu::widened<T>});
  ++fiber.products, ++emu::options.products;
}

// Groups run here, or when they are waited for: chance decides.
inline void commit_products() {
  emu::Fiber& fiber = emu::self();
  fiber.product_groups.push_back(std::move(fiber.begun));
  fiber.begun = {};
  emu::together(6, &fiber, nullptr, [](const emu::Meeting& warp) {
    if (emu::block.random() % 2) emu::run_groups(warp, 0);
  });
}

template <int PENDING>
void wait_for_products() {
  emu::Fiber& fiber = emu::self();
  emu::together(7, &fiber, nullptr, [](const emu::Meeting& warp) { emu::run_groups(warp, PENDING); });
  while (fiber.product_groups.size() > PENDING) fiber.product_groups.pop_front();
  const auto in_flight = [&fiber](const float* sums) {
    for (const emu::ProductGroup& group : fiber.product_groups)
      for (const emu::Product& product : group.products)
        if (product.sums == sums) return true;
    return false;
  };
  for (auto it = fiber.sums.begin(); it != fiber.sums.end();) {
    if (in_flight(it->first)) {
      ++it;
      continue;
    }
    if (emu::bytes_of(it->first, it->second.size() * sizeof(float)) != fiber.registers.at(it->first))
      emu::die("sums were written while products were in flight");
    std::memcpy(it->first, it->second.data(), it->second.size() * sizeof(float));
    it = fiber.sums.erase(it);
  }
  if (fiber.product_groups.empty()) fiber.registers.clear(), fiber.fenced = false;
}

}  // namespace ddn
