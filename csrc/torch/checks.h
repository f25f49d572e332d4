// Argument checks of the ops: every message reads "op: argument must be WANTED, got GOT".
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "params.h"

namespace ddn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string text(const std::vector<int64_t>& shape) {
  std::ostringstream out;
  const char* comma = "";
  out << '[';
  for (const int64_t n : shape) out << std::exchange(comma, ",") << n;
  out << ']';
  return out.str();
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

inline void check_shape(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& wanted) {
  if (shape_of(t) != wanted) fail(op, name, " must be ", text(wanted), ", got ", text(shape_of(t)));
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType wanted) {
  if (t.scalar_type() != wanted)
    fail(op, name, " must be ", torch::headeronly::toString(wanted), ", got ",
         torch::headeronly::toString(t.scalar_type()));
}

inline void check_same_device(const char* op, const char* name, const Tensor& t, const Tensor& x,
                              const char* name_of_x = "x") {
  const auto device = [](const Tensor& of) {
    std::string kind = of.is_cpu() ? "cpu" : of.is_cuda() ? "cuda:" : "another kind:";
    return of.is_cpu() ? kind : kind + std::to_string(of.get_device_index());
  };
  if (device(t) != device(x)) fail(op, name, " must be on ", device(x), " where ", name_of_x, " is, got ", device(t));
}

// x is a map [N,C,H,W] of a floating dtype the kernels have, with no empty axis but N.
inline Dtype check_map(const char* op, const Tensor& x) {
  if (x.dim() != 4) fail(op, "x must be [N,C,H,W], got ", text(shape_of(x)));
  if (x.size(1) < 1 || x.size(2) < 1 || x.size(3) < 1)
    fail(op, "x must be [N,C,H,W] with C, H and W at least 1, got ", text(shape_of(x)));
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default: fail(op, "x must be Float, Double, BFloat16 or Half, got ", torch::headeronly::toString(x.scalar_type()));
  }
}

inline Dtype check_float_or_bfloat16(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    default: fail(op, name, " must be Float or BFloat16, got ", torch::headeronly::toString(t.scalar_type()));
  }
}

}  // namespace ddn
