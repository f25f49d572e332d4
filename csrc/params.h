// One plain struct per op: what a kernel needs and nothing else. Kernels trust it; csrc/torch has checked it.
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

struct NetworkInputParams {
  const uint8_t* image;  // [H,W,3] red, green, blue
  void* y;               // [3,S,S] blue, green, red
  Dtype dtype;           // of y: float32, bfloat16 or float16
  int64_t height;        // H
  int64_t width;         // W
  int64_t side;          // S
};

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

// How the weights of a 3x3 convolution lie (ddn_fast/packing.py): I, O channels in blocks of 32, T taps (9, or 1 where
// the 27 values under the kernel are one block).
enum class Conv3x3Layout {
  pairs,     // [O/32,I/32,T,2,16,16,2] bfloat16: half of the out block, pair of inputs, output, input of the pair;
             // CUDA has this one only, and in float16 too
  direct,    // [O/32,I/32,T,32,32] float32: input, output
  winograd,  // [O/32,6,6,I/32,32,32] float32: transformed kernel, input, output
  winograd_int16,  // [O/32,6,6,I/2+1,32,2] int16: transformed kernel, pair of inputs, output, input of the pair; after
                   // the I/2 pairs, I padded, the 32 outputs' scales in float32
};

constexpr int64_t kMaxConv3x3Layers = 8;  // of a stage

struct Conv3x3Layer {
  const void* weight;
  const float* bias;  // [O]; null, in training only: neither bias nor ReLU
  Conv3x3Layout layout;
  int64_t in_channels;
  int64_t out_channels;
  bool keep_ties = false;  // neighbouring places with the same inputs give the same bits; direct sums do so anyhow
};

// A stage: layers that follow each other, unpooling before the first where `switches` is set, and one of three ends.
struct Conv3x3Params {
  const void* x;                 // [N,H,W,I]; with switches [N,H/2,W/2,I], pooled
  const uint8_t* switches;       // [B,H/2,W/2,ceil(I/4)] or null
  const int64_t* image_of_pass;  // [N], each in 0..B-1; null: map n uses image n
  const Conv3x3Layer* layers;    // [layer_count], each taking what the one before gives
  int64_t layer_count;           // 1 to kMaxConv3x3Layers
  Dtype dtype;                   // of x and y: float32 or bfloat16; on CUDA bfloat16 or float16
  int64_t maps;                  // N
  int64_t height;                // H, even where something is pooled or unpooled
  int64_t width;                 // W, likewise
  void* y;                       // [N,H,W,O]; with y_switches [N,H/2,W/2,O]; null with score
  uint8_t* y_switches;           // [N,H/2,W/2,ceil(O/4)] or null
  float* score;                  // [N,H,W] or null
  const float* score_weight;     // [O]
  const float* score_bias;       // [1]
  int64_t images;                // B; used by CUDA only, as what follows
  void* workspace;               // as many bytes as conv3x3_workspace_bytes says, at a 256-byte boundary
};

// A layer of the segmentation network in training: y = the transposed convolution of unpool(relu(scale * x + shift)),
// and its moments; between two layers batch normalisation is no more than the next one's scale and shift.
struct Deconv3x3MomentsParams {
  const void* x;            // [N,H,W,C]; with switches [N,H/2,W/2,C]
  const float* weight;      // [C,3,3,O]
  const float* scale;       // [C]
  const float* shift;       // [C]
  const uint8_t* switches;  // [N,H/2,W/2,ceil(C/4)] or null
  void* y;                  // [N,H,W,O]
  float* mean;              // [O], over N, H and W
  float* var;               // [O], biased
  float* rows;              // [N*H,2,O rounded up to 32] of workspace
  Dtype dtype;              // of x and y: float32 or bfloat16
  int64_t maps;             // N, at least 1
  int64_t height;           // H, even with switches
  int64_t width;            // W, likewise
  int64_t in_channels;      // C, at least 4
  int64_t out_channels;     // O, at least 4
};

// Its gradients, from those of y, mean and var.
struct Deconv3x3MomentsBackwardParams {
  const void* grad_y;      // [N,H,W,O]; null where it is that of a score
  const float* grad_mean;  // [O]
  const float* grad_var;   // [O]
  const void* y;           // [N,H,W,O]
  const float* mean;       // [O]
  const void* x;           // as above, as what follows
  const float* weight;
  const float* scale;
  const float* shift;
  const uint8_t* switches;
  void* grad_x;        // like x
  float* grad_weight;  // [C,3,3,O]
  float* grad_scale;   // [C]
  float* grad_shift;   // [C]
  float* rows;         // [rows of grad_x, 2, C rounded up to 32] of workspace
  Dtype dtype;         // of grad_y, y, x and grad_x
  int64_t maps, height, width, in_channels, out_channels;
};

// The same where y goes to seg_score alone, whose gradient for it is formed while it is read.
struct Deconv3x3MomentsBackwardScoreParams {
  Deconv3x3MomentsBackwardParams layer;  // grad_y null
  const float* grad_score;               // [N,H,W,2]
  const float* score_scale;              // [O]
  const float* score_shift;              // [O]
  const float* score_weight;             // [2,O]
};

// The two seg-scores of relu(scale * x + shift), a 1x1 convolution (SPEC section 6).
struct SegScoreParams {
  const void* x;        // [N,H,W,C]
  const float* scale;   // [C]
  const float* shift;   // [C]
  const float* weight;  // [2,C]
  const float* bias;    // [2]
  float* y;             // [N,H,W,2]
  Dtype dtype;          // of x: float32 or bfloat16
  int64_t rows;         // N*H
  int64_t width;        // W
  int64_t channels;     // C
};

struct SegScoreBackwardParams {
  const float* grad_y;  // [N,H,W,2]
  const void* x;        // as above, as what follows
  const float* scale;
  const float* shift;
  const float* weight;
  void* grad_x;        // [N,H,W,C] or null
  float* grad_scale;   // [C]
  float* grad_shift;   // [C]
  float* grad_weight;  // [2,C]
  float* grad_bias;    // [2]
  float* sums;         // [N*H,4,C rounded up to 32] of workspace
  Dtype dtype;         // of x and grad_x
  int64_t rows, width, channels;
};

struct DenseParams {
  const void* x;       // [M,K]
  const void* weight;  // [N,K]
  const float* bias;   // [N] or null
  float* y;            // [M,N]
  Dtype x_dtype;       // float32 or bfloat16
  Dtype dtype;         // of weight, likewise
  int64_t rows;        // M
  int64_t outputs;     // N
  int64_t inputs;      // K
  bool relu;
};

struct DenseOuterParams {
  const float* a;   // [D,R]
  const float* b;   // [D,C]
  float* y;         // [R,C]
  int64_t depth;    // D
  int64_t rows;     // R
  int64_t columns;  // C
};

struct ClassGateParams {
  const void* cls_weight;   // [L,F]
  const void* fc7_weight;   // [F,F]
  const void* fc6_weight;   // [F,K]
  const void* fc6;          // [B,A,F], A places of the head's grid
  const void* fc7;          // [B,A,F]
  const int64_t* position;  // [B,L], each in 0..A-1
  const int64_t* image;     // [Q], each in 0..B-1
  const int64_t* label;     // [Q], each in 0..L-1
  float* y;                 // [Q,K]
  Dtype cls_dtype;          // of cls_weight: float32 or bfloat16
  Dtype dtype;              // of fc7_weight and fc6_weight, likewise, or float16 on CUDA
  Dtype fc6_dtype;          // float32 or bfloat16
  Dtype fc7_dtype;          // likewise
  int64_t labels;           // L
  int64_t features;         // F
  int64_t places;           // A
  int64_t inputs;           // K
  int64_t pairs;            // Q
  int64_t images;           // B; used by CUDA only, as what follows
  void* workspace;          // as many bytes as class_gate_workspace_bytes says, at a 256-byte boundary
};

struct MergeScoresParams {
  const void* difference;  // [P,S,S], P = K + 1, or 1 where K = 1
  uint8_t* y;              // [h,w]
  Dtype dtype;             // float32 or float64
  int64_t classes;         // K
  int64_t side;            // S
  int64_t square;          // to which maps are resized
  int64_t height;          // h, of which this is kept
  int64_t width;           // w
  void* workspace;         // CUDA only: as many bytes as merge_scores_workspace_bytes says, at a 256-byte boundary
};

}  // namespace ddn
