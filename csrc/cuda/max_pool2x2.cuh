// max_pool2x2: y = max over each 2x2 window, switches = which place held it (SPEC section 2, identity 7).
// Thread map: window.cuh. Bytes: x read once, y and C/4 of switches written; bound by memory.
#pragma once
#include "cuda/window.cuh"

namespace ddn {

template <class T, int N>
DDN_GLOBAL void max_pool2x2_kernel(const MaxPool2x2Params p) {
  using Rule = Order<T>;
  using Value = typename Rule::Value;
  const int64_t rows = half_up(p.height), columns = half_up(p.width), item = this_item();
  const Place at = place_of<N>(item, rows, columns, p.channels);
  if (at.map >= p.images) return;
  const int count = p.channels - at.channel < N ? static_cast<int>(p.channels - at.channel) : N;
  const Value* top =
      static_cast<const Value*>(p.x) + ((at.map * p.height + 2 * at.i) * p.width + 2 * at.j) * p.channels + at.channel;
  const bool has_right = 2 * at.j + 1 < p.width, has_bottom = 2 * at.i + 1 < p.height;

  Value best[N];
  uint32_t packed = 0;
  load_channels<N>(best, top, count);  // beyond `count` all four are 0, so unused switch bits stay 0
  DDN_UNROLL
  for (int position = 1; position < 4; ++position) {
    const int dy = position >> 1, dx = position & 1;
    if ((dy && !has_bottom) || (dx && !has_right)) continue;
    Value value[N];
    load_channels<N>(value, top + (dy * p.width + dx) * p.channels, count);
    DDN_UNROLL
    for (int k = 0; k < N; ++k) {
      const bool beats = Rule::beats(Rule::key(value[k]), Rule::key(best[k]));
      best[k] = beats ? value[k] : best[k];
      packed = beats ? (packed & ~(3u << 2 * k)) | static_cast<uint32_t>(position) << 2 * k : packed;
    }
  }
  const int64_t pixel = (at.map * rows + at.i) * columns + at.j;
  store_channels<N>(static_cast<Value*>(p.y) + pixel * p.channels + at.channel, best, count);
  store_switches<N>(p.switches + pixel * switch_bytes(p.channels) + at.channel / 4, packed);
}

}  // namespace ddn
