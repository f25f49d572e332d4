// The stage in float, for instruction sets without bfloat16 products, and for weights that are float32.
#pragma once
#include "cpu/conv3x3_stage.h"
#include "cpu/conv3x3_winograd.h"

namespace ddn::cpu {
namespace {

struct FloatKernel {
  using E = float;

  static void enter() {
  }
  static void leave() {
  }

  static size_t scratch_bytes(const Conv3x3Layer& layer) {
    return layer.layout == Conv3x3Layout::winograd ? winograd_scratch(layer) : 0;
  }

  static int64_t row_unit(const Conv3x3Layer& layer) {
    return layer.layout == Conv3x3Layout::winograd ? 4 : 1;
  }

  static void rows(const RowsJob<float>& job, void* scratch) {
    switch (job.layer.layout) {
      case Conv3x3Layout::pairs: return direct_rows<PairWeights>(job);
      case Conv3x3Layout::direct: return direct_rows<DirectWeights>(job);
      case Conv3x3Layout::winograd: return winograd_rows(job, static_cast<float*>(scratch));
    }
  }
};

}  // namespace
}  // namespace ddn::cpu
