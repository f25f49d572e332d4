// max_unpool2x2: y[p,2i+dy,2j+dx,c] = x[p,i,j,c] where the switch says 2*dy + dx, else 0 (SPEC section 6).
// Values are moved, never computed with, so one instance per element size. Threads: one pooled row at a time, channels
// innermost, one register a step. Bytes: x and C/4 of switches read once, y written once. All passes of an image share
// its switches (SPEC identity 7).
#include "cpu/lanes.h"
#include "cpu/window.h"
#include "kernels.h"

namespace ddn::cpu {
namespace {

// U: unsigned integer of the element's size.
template <class U>
void unpool_rows(const MaxUnpool2x2Params& p, int64_t row_begin, int64_t row_end) {
  const int64_t rows = half_up(p.height), columns = half_up(p.width), bytes = switch_bytes(p.channels);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t pass = row / rows, i = row % rows;
    const int64_t image = p.image_of_pass ? p.image_of_pass[pass] : pass;
    const WindowRow<U> out(static_cast<U*>(p.y), row, p.height, p.width, p.channels);
    for (int64_t j = 0; j < columns; ++j) {
      const Window<U> window = out.window(j);
      const U* x = static_cast<const U*>(p.x) + (row * columns + j) * p.channels;
      const uint8_t* switches = p.switches + ((image * rows + i) * columns + j) * bytes;
      each_vector<U>(p.channels, [&](int64_t c, int count) __attribute__((always_inline)) {
        const Lanes<U> value = load(x + c, count), position = load_positions<U>(switches + c / 4, count);
        for (int k = 0; k < window.count; ++k)
          store(window.place[k] + c, position == window.position[k] ? value : Lanes<U>{}, count);
      });
    }
  }
}

}  // namespace

void max_unpool2x2(const MaxUnpool2x2Params& p, int64_t row_begin, int64_t row_end) {
  switch (element_bytes(p.dtype)) {
    case 2: return unpool_rows<uint16_t>(p, row_begin, row_end);
    case 4: return unpool_rows<uint32_t>(p, row_begin, row_end);
    case 8: return unpool_rows<uint64_t>(p, row_begin, row_end);
  }
}

}  // namespace ddn::cpu
