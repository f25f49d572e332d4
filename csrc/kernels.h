// Every kernel's entry point, torch-free. One name per op, one namespace per device.
#pragma once
#include <cstdint>

#include "cpu/parallel.h"
#include "params.h"

struct CUstream_st;

namespace ddn::cpu {

// On the caller's thread alone: images are prepared beside each other.
void network_input(const NetworkInputParams& p);

// Each computes pooled rows [row_begin, row_end) of the images*h (passes*h) there are; the caller shares rows out among
// threads.
void max_pool2x2(const MaxPool2x2Params& p, int64_t row_begin, int64_t row_end);
void max_unpool2x2(const MaxUnpool2x2Params& p, int64_t row_begin, int64_t row_end);
void gather2x2(const Gather2x2Params& p, int64_t row_begin, int64_t row_end);

// Each shares its work out by itself, step by step.
void conv3x3(const Conv3x3Params& p, const Parallel& parallel);
void dense(const DenseParams& p, const Parallel& parallel);
void dense_outer(const DenseOuterParams& p, const Parallel& parallel);
void class_gate(const ClassGateParams& p, const Parallel& parallel);
void merge_scores(const MergeScoresParams& p, const Parallel& parallel);
void deconv3x3_moments(const Deconv3x3MomentsParams& p, const Parallel& parallel);
void deconv3x3_moments_backward(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel);
void deconv3x3_moments_backward_score(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel);
void seg_score(const SegScoreParams& p, const Parallel& parallel);
void seg_score_backward(const SegScoreBackwardParams& p, const Parallel& parallel);

}  // namespace ddn::cpu

namespace ddn::cuda {

using Stream = CUstream_st*;

// Each enqueues on `stream` and returns a cudaError_t as int, 0 for success.
int max_pool2x2(const MaxPool2x2Params& p, Stream stream);
int max_unpool2x2(const MaxUnpool2x2Params& p, Stream stream);
int gather2x2(const Gather2x2Params& p, Stream stream);
int conv3x3(const Conv3x3Params& p, Stream stream);
int class_gate(const ClassGateParams& p, Stream stream);
int merge_scores(const MergeScoresParams& p, Stream stream);

// What the caller must allocate for the above on the current device; -1 where they would refuse p.
int64_t conv3x3_workspace_bytes(const Conv3x3Params& p);
int64_t class_gate_workspace_bytes(const ClassGateParams& p);
int64_t merge_scores_workspace_bytes(const MergeScoresParams& p);

// The matrix instructions that the current device's kernels use here and now: mma, or wgmma where sm_90a was built and
// the device has it, but not above the environment variable DDN_MAX_CUDA_ISA; null where there is no device.
const char* isa_name();

const char* error_text(int error);
// True when `error` means that the library holds no code for this GPU.
bool is_missing_code(int error);

}  // namespace ddn::cuda
