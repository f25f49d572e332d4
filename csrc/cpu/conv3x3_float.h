// The stage with maps in float between its layers: for every layout but pairs on AMX.
#pragma once
#include "cpu/conv3x3_stage.h"
#include "cpu/conv3x3_winograd_int16.h"

namespace ddn::cpu {
namespace {

struct FloatKernel {
  using E = float;

  static void enter() {
  }
  static void leave() {
  }

  static size_t scratch_bytes(const Conv3x3Layer& layer) {
    switch (layer.layout) {
      case Conv3x3Layout::winograd: return winograd_scratch<FloatNumbers>(layer);
      case Conv3x3Layout::winograd_int16: return winograd_scratch<Int16Numbers>(layer);
      default: return 0;
    }
  }

  static int64_t row_unit(const Conv3x3Layer& layer) {
    return layer.layout == Conv3x3Layout::winograd || layer.layout == Conv3x3Layout::winograd_int16 ? 4 : 1;
  }

  static void rows(const RowsJob<float>& job, void* scratch) {
    switch (job.layer.layout) {
      case Conv3x3Layout::pairs: return direct_rows<PairWeights>(job);
      case Conv3x3Layout::direct: return direct_rows<DirectWeights>(job);
      case Conv3x3Layout::winograd: return winograd_rows<FloatNumbers>(job, scratch);
      case Conv3x3Layout::winograd_int16: return winograd_rows<Int16Numbers>(job, scratch);
    }
  }

  static size_t together_bytes(const Conv3x3Layer& layer, int64_t maps, int64_t height, int64_t width) {
    switch (layer.layout) {
      case Conv3x3Layout::winograd: return winograd_together_bytes<FloatNumbers>(layer, maps, height, width);
      case Conv3x3Layout::winograd_int16: return winograd_together_bytes<Int16Numbers>(layer, maps, height, width);
      default: return 0;
    }
  }

  static void together(const RowsJob<float>& job, void* memory, const Parallel& parallel) {
    job.layer.layout == Conv3x3Layout::winograd ? winograd_together<FloatNumbers>(job, memory, parallel)
                                                : winograd_together<Int16Numbers>(job, memory, parallel);
  }
};

}  // namespace
}  // namespace ddn::cpu
