// One plain struct per op: what a kernel needs and nothing else. Kernels trust it; csrc/torch/ops.cpp has checked it.
// B images, P passes, C channels, H x W the full map, h x w = ceil(H/2) x ceil(W/2) the pooled one; C is innermost.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace ddn {

enum class Dtype { float32, float64, bfloat16, float16 };

constexpr int element_bytes(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

DDN_HOST_DEVICE constexpr int64_t half_up(int64_t n) {
  return n / 2 + n % 2;
}

struct MaxPool2x2Params {
  const void* x;      // [B,H,W,C]
  void* y;            // [B,h,w,C]
  uint8_t* switches;  // [B,h,w,ceil(C/4)], 2 bits each
  Dtype dtype;        // of x and y
  int64_t images;     // B
  int64_t height;     // H
  int64_t width;      // W
  int64_t channels;   // C
};

struct MaxUnpool2x2Params {
  const void* x;                 // [P,h,w,C]
  const uint8_t* switches;       // [B,h,w,ceil(C/4)], 2 bits each
  const int64_t* image_of_pass;  // [P], each in 0..B-1; null: pass p uses image p
  void* y;                       // [P,H,W,C]
  Dtype dtype;                   // of x and y
  int64_t images;                // B
  int64_t passes;                // P
  int64_t height;                // H
  int64_t width;                 // W
  int64_t channels;              // C
};

struct Gather2x2Params {
  const void* x;                 // [P,H,W,C]
  const uint8_t* switches;       // [B,h,w,ceil(C/4)], 2 bits each
  const int64_t* image_of_pass;  // [P], each in 0..B-1; null: pass p uses image p
  void* y;                       // [P,h,w,C]
  Dtype dtype;                   // of x and y
  int64_t images;                // B
  int64_t passes;                // P
  int64_t height;                // H
  int64_t width;                 // W
  int64_t channels;              // C
};

}  // namespace ddn
