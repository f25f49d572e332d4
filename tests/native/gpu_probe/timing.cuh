// Times on the device, by events; under emulation one run and no time.
#pragma once
#include <algorithm>
#include <vector>

#include "device_array.h"

namespace ddn::probe {

// Median seconds of one call of `enqueue(stream)`, of `samples` samples of `repeats` calls each, after two to warm up.
template <class Enqueue>
double seconds_of(const Enqueue& enqueue, [[maybe_unused]] int samples = 7, [[maybe_unused]] int repeats = 3) {
#ifdef DDN_EMU
  enqueue();
  return 1;
#else
  cudaEvent_t begin, end;
  require_success(cudaEventCreate(&begin), "cudaEventCreate");
  require_success(cudaEventCreate(&end), "cudaEventCreate");
  for (int k = 0; k < 2; ++k) enqueue();
  finish("warm-up");
  std::vector<float> milliseconds;
  for (int k = 0; k < samples; ++k) {
    cudaEventRecord(begin);
    for (int r = 0; r < repeats; ++r) enqueue();
    cudaEventRecord(end);
    require_success(cudaEventSynchronize(end), "timing");
    float elapsed = 0;
    cudaEventElapsedTime(&elapsed, begin, end);
    milliseconds.push_back(elapsed / static_cast<float>(repeats));
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::nth_element(milliseconds.begin(), milliseconds.begin() + samples / 2, milliseconds.end());
  return milliseconds[static_cast<size_t>(samples / 2)] * 1e-3;
#endif
}

}  // namespace ddn::probe
