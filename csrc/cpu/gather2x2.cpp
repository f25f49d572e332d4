// gather2x2: y[p,i,j,c] = x[p,2i+dy,2j+dx,c] with 2*dy + dx the switch; 0 where that place lies outside the map.
// The transpose of max_unpool2x2, and so its gradient. Values are moved, never computed with: one instance per element
// size. Threads: one pooled row at a time, channels innermost, one register a step. Bytes: x and C/4 of switches read
// once, y written once.
#include "cpu/lanes.h"
#include "cpu/window.h"
#include "kernels.h"

namespace ddn::cpu {
namespace {

// U: unsigned integer of the element's size.
template <class U>
void gather_rows(const Gather2x2Params& p, int64_t row_begin, int64_t row_end) {
  const int64_t rows = half_up(p.height), columns = half_up(p.width), bytes = switch_bytes(p.channels);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t pass = row / rows, i = row % rows;
    const int64_t image = p.image_of_pass ? p.image_of_pass[pass] : pass;
    const WindowRow<const U> in(static_cast<const U*>(p.x), row, p.height, p.width, p.channels);
    for (int64_t j = 0; j < columns; ++j) {
      const Window<const U> window = in.window(j);
      U* y = static_cast<U*>(p.y) + (row * columns + j) * p.channels;
      const uint8_t* switches = p.switches + ((image * rows + i) * columns + j) * bytes;
      each_vector<U>(p.channels, [&](int64_t c, int count) __attribute__((always_inline)) {
        const Lanes<U> position = load_positions<U>(switches + c / 4, count);
        Lanes<U> value{};
        for (int k = 0; k < window.count; ++k)
          value = position == window.position[k] ? load(window.place[k] + c, count) : value;
        store(y + c, value, count);
      });
    }
  }
}

}  // namespace

void gather2x2(const Gather2x2Params& p, int64_t row_begin, int64_t row_end) {
  switch (element_bytes(p.dtype)) {
    case 2: return gather_rows<uint16_t>(p, row_begin, row_end);
    case 4: return gather_rows<uint32_t>(p, row_begin, row_end);
    case 8: return gather_rows<uint64_t>(p, row_begin, row_end);
  }
}

}  // namespace ddn::cpu
