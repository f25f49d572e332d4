// max_unpool2x2: y[p,2i+dy,2j+dx,c] = x[p,i,j,c] where the switch says 2*dy + dx, else 0 (SPEC section 6).
// Thread map: window.cuh. Bytes: x and C/4 of switches read once, y (four times x) written once; bound by memory.
// All passes of an image share its switches (SPEC identity 7). Values are moved as bits: U is an unsigned integer.
#pragma once
#include "cuda/window.cuh"

namespace ddn {

template <class U, int N>
DDN_GLOBAL void max_unpool2x2_kernel(const MaxUnpool2x2Params p) {
  const int64_t rows = half_up(p.height), columns = half_up(p.width), item = this_item();
  const Place at = place_of<N>(item, rows, columns, p.channels);
  if (at.map >= p.passes) return;
  const int count = p.channels - at.channel < N ? static_cast<int>(p.channels - at.channel) : N;
  const int64_t image = image_of(p, at.map);
  const uint32_t packed = load_switches<N>(
      p.switches + ((image * rows + at.i) * columns + at.j) * switch_bytes(p.channels) + at.channel / 4);
  U value[N];
  load_channels<N>(
      value, static_cast<const U*>(p.x) + ((at.map * rows + at.i) * columns + at.j) * p.channels + at.channel, count);

  U* top = static_cast<U*>(p.y) + ((at.map * p.height + 2 * at.i) * p.width + 2 * at.j) * p.channels + at.channel;
  const bool has_right = 2 * at.j + 1 < p.width, has_bottom = 2 * at.i + 1 < p.height;
  DDN_UNROLL
  for (uint32_t position = 0; position < 4; ++position) {
    const int dy = position >> 1, dx = position & 1;
    if ((dy && !has_bottom) || (dx && !has_right)) continue;
    U out[N];
    DDN_UNROLL
    for (int k = 0; k < N; ++k) out[k] = (packed >> 2 * k & 3) == position ? value[k] : U{0};
    store_channels<N>(top + (dy * p.width + dx) * p.channels, out, count);
  }
}

}  // namespace ddn
