#include "cpu/scratch.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace ddn::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

struct Arena {
  void* memory = nullptr;
  size_t bytes = 0;

  void grow(size_t wanted) {
    std::free(memory);
    memory = nullptr, bytes = 0;
    wanted = (wanted + kHugePage - 1) / kHugePage * kHugePage;
    memory = std::aligned_alloc(kHugePage, wanted);
    if (!memory) throw std::bad_alloc();
    bytes = wanted;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: without it everything works, more slowly
#endif
  }

  ~Arena() {
    std::free(memory);
  }
};

}  // namespace

void* scratch(Scratch kind, size_t bytes) {
  thread_local Arena arenas[3];
  Arena& arena = arenas[static_cast<int>(kind)];
  if (bytes > arena.bytes) arena.grow(bytes);
  return arena.memory;
}

size_t l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return static_cast<size_t>(found);
#endif
  return size_t{1} << 20;
}

}  // namespace ddn::cpu
