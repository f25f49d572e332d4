// csrc/cpu/scratch.h for tests under sanitizers: a heap block of exactly what was asked for, full of NaN; and a cache
// so small that as few rows as can be are taken at once.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/scratch.h"

namespace ddn::cpu {

void* scratch(Scratch kind, size_t bytes) {
  static std::unique_ptr<void, void (*)(void*)> blocks[3] = {
      {nullptr, std::free}, {nullptr, std::free}, {nullptr, std::free}};
  auto& block = blocks[static_cast<int>(kind)];
  block.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  std::memset(block.get(), 0xff, bytes);  // NaN in float and in bfloat16
  return block.get();
}

size_t l2_bytes() {
  return 1;
}

}  // namespace ddn::cpu
