// How a kernel shares out its work without knowing whose threads they are.
#pragma once
#include <cstdint>

namespace ddn::cpu {

struct Parallel {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  // Calls body for ranges that make up [0, count), each on some thread, and returns when all are done.
  void (*run)(int64_t count, Body body, void* context);
  int64_t threads;  // how many there are, about: what can be cut finely enough for all

  template <class F>
  void operator()(int64_t count, F&& f) const {
    run(count, [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); }, &f);
  }
};

}  // namespace ddn::cpu
