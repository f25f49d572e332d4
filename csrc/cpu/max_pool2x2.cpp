// max_pool2x2: y = max over each 2x2 window, switches = which place held it (SPEC section 2, identity 7).
// Threads: one pooled row at a time, channels innermost, one register a step. Bytes: x read once, y and C/4 of switches
// written.
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/window.h"
#include "kernels.h"

namespace ddn::cpu {
namespace {

template <class T>
void pool_rows(const MaxPool2x2Params& p, int64_t row_begin, int64_t row_end) {
  using Rule = Order<T>;
  using Value = typename Rule::Value;
  const int64_t columns = half_up(p.width), bytes = switch_bytes(p.channels);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const WindowRow<const Value> in(static_cast<const Value*>(p.x), row, p.height, p.width, p.channels);
    for (int64_t j = 0; j < columns; ++j) {
      const Window<const Value> window = in.window(j);
      Value* y = static_cast<Value*>(p.y) + (row * columns + j) * p.channels;
      uint8_t* switches = p.switches + (row * columns + j) * bytes;
      each_vector<Value>(p.channels, [&](int64_t c, int count) __attribute__((always_inline)) {
        using Mask = decltype(Rule::beats(Lanes<Value>{}, Lanes<Value>{}));
        Lanes<Value> best = load(window.place[0] + c, count), best_key = Rule::key(best);
        Mask position{};
        for (int i = 1; i < window.count; ++i) {
          const Lanes<Value> value = load(window.place[i] + c, count), key = Rule::key(value);
          const Mask beats = Rule::beats(key, best_key);
          best = beats ? value : best;
          best_key = beats ? key : best_key;
          position = beats ? Mask{} + window.position[i] : position;
        }
        store(y + c, best, count);
        store_positions<std::remove_cvref_t<decltype(position[0])>>(switches + c / 4, position, count);
      });
    }
  }
}

}  // namespace

void max_pool2x2(const MaxPool2x2Params& p, int64_t row_begin, int64_t row_end) {
  switch (p.dtype) {
    case Dtype::float32: return pool_rows<float>(p, row_begin, row_end);
    case Dtype::float64: return pool_rows<double>(p, row_begin, row_end);
    case Dtype::bfloat16: return pool_rows<BFloat16>(p, row_begin, row_end);
    case Dtype::float16: return pool_rows<Float16>(p, row_begin, row_end);
  }
}

}  // namespace ddn::cpu
