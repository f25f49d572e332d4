// What the three CPU kernels share: the places of one 2x2 window that exist, and a map cut into pooled rows.
#pragma once
#include <cstdint>

#include "params.h"

namespace ddn::cpu {

// The places of one window, in row-major order; at an odd edge two or three of the four do not exist.
template <class T>
struct Window {
  T* place[4];          // [C] each
  uint8_t position[4];  // 2*dy + dx of place[i]
  int count;
};

// Pooled row `row` of all images*h rows of a map [images,H,W,C].
template <class T>
struct WindowRow {
  T* top;  // [W,C]
  int64_t width, channels;
  bool has_bottom;

  WindowRow(T* map, int64_t row, int64_t height, int64_t width, int64_t channels) : width(width), channels(channels) {
    const int64_t rows = half_up(height);
    const int64_t image = row / rows, i = row % rows;
    top = map + (image * height + 2 * i) * width * channels;
    has_bottom = 2 * i + 1 < height;
  }

  Window<T> window(int64_t j) const {
    Window<T> w{};
    for (int position = 0; position < 4; ++position) {
      const int dy = position >> 1, dx = position & 1;
      if ((dy && !has_bottom) || 2 * j + dx >= width) continue;
      w.place[w.count] = top + (dy * width + 2 * j + dx) * channels;
      w.position[w.count++] = static_cast<uint8_t>(position);
    }
    return w;
  }
};

}  // namespace ddn::cpu
