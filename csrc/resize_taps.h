// The filter of MATLAB's imresize along one axis, for host and device; as resize_taps of ddn_fast/images.py. Pixel
// centres lie at half-integers; the kernel is stretched where the axis shrinks; weights sum to 1; beyond the edges the
// signal is mirrored.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ddn {

struct Triangle {
  static constexpr double reach = 1;
  DDN_HOST_DEVICE static double at(double x) {
    x = x < 0 ? -x : x;
    return x < 1 ? 1 - x : 0;
  }
};

struct Cubic {  // a = -0.5
  static constexpr double reach = 2;
  DDN_HOST_DEVICE static double at(double x) {
    x = x < 0 ? -x : x;
    if (x <= 1) return (1.5 * x - 2.5) * x * x + 1;
    return x <= 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  }
};

template <class Kernel>
struct ResizeTaps {
  int64_t size_in, size_out;

  DDN_HOST_DEVICE double scale() const {
    return static_cast<double>(size_out) / static_cast<double>(size_in);
  }
  DDN_HOST_DEVICE double shrink() const {
    return scale() < 1 ? scale() : 1.0;
  }
  // Of every output.
  DDN_HOST_DEVICE int64_t taps() const {
    return size_in == size_out ? 1 : static_cast<int64_t>(std::floor(2 * Kernel::reach / shrink())) + 1;
  }

  // The taps() indices and weights of output i.
  template <class Index, class Weight>
  DDN_HOST_DEVICE void fill(int64_t i, Index* index, Weight* weight) const {
    if (size_in == size_out) {
      *index = static_cast<Index>(i), *weight = 1;
      return;
    }
    const double centre = (static_cast<double>(i) + 0.5) / scale() - 0.5;
    const int64_t first = static_cast<int64_t>(std::ceil(centre - Kernel::reach / shrink()));  // outside it is 0
    const int64_t count = taps();
    double sum = 0;
    for (int64_t t = 0; t < count; ++t) sum += Kernel::at(shrink() * (centre - static_cast<double>(first + t)));
    for (int64_t t = 0; t < count; ++t) {
      const int64_t mirrored = ((first + t) % (2 * size_in) + 2 * size_in) % (2 * size_in);
      index[t] = static_cast<Index>(mirrored < size_in ? mirrored : 2 * size_in - 1 - mirrored);
      weight[t] = static_cast<Weight>(Kernel::at(shrink() * (centre - static_cast<double>(first + t))) / sum);
    }
  }
};

}  // namespace ddn
