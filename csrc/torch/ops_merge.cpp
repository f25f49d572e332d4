// The way from passes to labels: merge_scores.
#include "torch/launch.h"

namespace ddn {
namespace {

Tensor merge_scores(const Tensor& difference_any, int64_t classes, int64_t square, std::vector<int64_t> crop) {
  constexpr const char* op = "merge_scores";
  const ScalarType type = difference_any.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double)
    fail(op, "difference must be Float or Double, got ", torch::headeronly::toString(type));
  if (classes < 1 || classes > 254) fail(op, "classes must be 1..254, got ", classes);
  const int64_t passes = classes == 1 ? 1 : classes + 1;
  const std::vector<int64_t> shape = shape_of(difference_any);
  if (shape.size() != 3 || shape[0] != passes || shape[1] != shape[2] || shape[1] < 1)
    fail(op, "difference must be [", passes, ",S,S] with ", classes, " classes, got ", text(shape));
  if (square < 1) fail(op, "square must be at least 1, got ", square);
  if (crop.size() != 2 || crop[0] < 1 || crop[1] < 1 || crop[0] > square || crop[1] > square)
    fail(op, "crop must be [h,w], each in 1..", square, ", got ", text(crop));
  const auto on_device = guard(difference_any);
  const Tensor difference = torch::stable::contiguous(difference_any);

  Tensor y = empty(difference, crop, ScalarType::Byte);
  const MergeScoresParams p{
      .difference = difference.const_data_ptr(),
      .y = static_cast<uint8_t*>(y.mutable_data_ptr()),
      .dtype = type == ScalarType::Double ? Dtype::float64 : Dtype::float32,
      .classes = classes,
      .side = shape[1],
      .square = square,
      .height = crop[0],
      .width = crop[1],
      .workspace = nullptr,
  };
  if (difference.is_cpu())
    cpu::merge_scores(p, torch_threads());
  else
    run_on_cuda<MergeScoresParams>(op, DDN_CUDA_KERNEL(merge_scores), DDN_CUDA_KERNEL(merge_scores_workspace_bytes), p,
                                   difference);
  return y;
}

}  // namespace
}  // namespace ddn

STABLE_TORCH_LIBRARY_FRAGMENT(ddn_fast, m) {
  m.def("merge_scores(Tensor difference, SymInt classes, SymInt square, SymInt[] crop) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CPU, m) {
  m.impl("merge_scores", TORCH_BOX(&ddn::merge_scores));
}

STABLE_TORCH_LIBRARY_IMPL(ddn_fast, CUDA, m) {
  m.impl("merge_scores", TORCH_BOX(&ddn::merge_scores));
}
