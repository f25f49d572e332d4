// Memory that a thread keeps from call to call: grown when needed, in huge pages where the system gives them, freed
// when the thread ends. Kernels run thousands of times a second; fresh pages would cost them more than the arithmetic.
#pragma once
#include <cstddef>

namespace ddn::cpu {

enum class Scratch {
  shared,   // what a call's threads share
  weights,  // packed in a call, and shared
  worker,   // what each thread has for itself
};

// At least `bytes` at a multiple of 4096; the content is arbitrary. Valid until the thread asks again for the same
// kind. Throws std::bad_alloc.
void* scratch(Scratch kind, size_t bytes);

// Bytes of the second-level cache of one core.
size_t l2_bytes();

}  // namespace ddn::cpu
