// class_gate: the class-specific activation map of (image, label) pairs (SPEC section 4), each as the 7x7 window that
// is not zero (identity 1), as two products of a vector and a matrix:
//   g7 = cls_weight[label] where fc7 > 0;  g6 = g7 @ fc7_weight where fc6 > 0;  y = g6 @ fc6_weight.
// Bound by reading weights, so only rows that are on for one of the pairs, where g is not 0, are read (identity 10),
// once for up to eight pairs.
//
// Block: 128 threads, 8 columns each by eight pairs; blockIdx = (1024 columns, 256 rows, eight pairs). It finds g of
// its rows, lists those that are on, and sums them up, four rows in flight. Shares of 256 rows leave their sums for the
// next step to add up in their order: no result depends on which pairs stand beside it, or on timing. Bytes, R rows on,
// Q pairs: R * columns of weights per eight pairs; 2 * 4 * Q * columns * (rows / 256) of sums.
#pragma once
#include <cstring>

#include "cuda/warp.cuh"
#include "params.h"

namespace ddn {

struct GateLaunch {
  ClassGateParams op;
  const float* before;  // [shares,Q,F] sums of the product before; null in the first
  float* sums;          // [shares,Q,columns]
  int64_t columns;
  int shares;  // ceil(F/256)
  bool wide;   // 16-byte accesses are allowed
};

constexpr int kGateThreads = 128, kGateRows = 256, kGatePairs = 8, kGateColumns = 8;

DDN_DEVICE float gate_value(const void* from, Dtype dtype, int64_t at) {
  return dtype == Dtype::float32 ? static_cast<const float*>(from)[at]
                                 : widen<BFloat16>(static_cast<const uint16_t*>(from)[at]);
}

// g of row f for pair q.
DDN_DEVICE float gate_of(const GateLaunch& p, int64_t q, int64_t f) {
  const ClassGateParams& op = p.op;
  const int64_t image = op.image[q], label = op.label[q];
  require(image >= 0 && image < op.images && label >= 0 && label < op.labels);
  const int64_t place = op.position[image * op.labels + label];
  require(place >= 0 && place < op.places);
  const int64_t at = (image * op.places + place) * op.features + f;
  if (!p.before) {
    if (!(gate_value(op.fc7, op.fc7_dtype, at) > 0)) return 0;
    return gate_value(op.cls_weight, op.cls_dtype, label * op.features + f);
  }
  if (!(gate_value(op.fc6, op.fc6_dtype, at) > 0)) return 0;
  float sum = 0;
  for (int s = 0; s < p.shares; ++s) sum += p.before[(s * op.pairs + q) * op.features + f];
  return sum;
}

// W: float, BFloat16 or Float16.
template <class W>
struct GateWeight {
  using Stored = uint16_t;
  static DDN_DEVICE float wide(Stored bits) {
    return widen<W>(bits);
  }
};
template <>
struct GateWeight<float> {
  using Stored = float;
  static DDN_DEVICE float wide(Stored value) {
    return value;
  }
};

// Eight columns of a row of weights, as float.
template <class W>
DDN_DEVICE void load_weights(float (&w)[kGateColumns], const typename GateWeight<W>::Stored* at, int count, bool wide) {
  typename GateWeight<W>::Stored value[kGateColumns] = {};
  if (wide) {
    DDN_UNROLL
    for (int k = 0; k < static_cast<int>(sizeof value) / 16; ++k) {
      const uint4 bits = load16(reinterpret_cast<const uint4*>(at) + k);
      memcpy(reinterpret_cast<uint4*>(value) + k, &bits, sizeof bits);
    }
  } else {
    DDN_UNROLL
    for (int k = 0; k < kGateColumns; ++k)
      if (k < count) value[k] = at[k];
  }
  DDN_UNROLL
  for (int k = 0; k < kGateColumns; ++k) w[k] = GateWeight<W>::wide(value[k]);
}

template <class W>
DDN_GLOBAL void DDN_LAUNCH_BOUNDS(kGateThreads, 4) gate_product_kernel(const GateLaunch p) {
  DDN_SHARED_MEMORY(shared);
  const Shared scales = shared_address(shared), rows = scales + kGateRows * kGatePairs * 4;  // [256][8], [256]
  const Shared row_count = rows + kGateRows * 4;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kGateRows;
  const int64_t first_pair = static_cast<int64_t>(blockIdx.z) * kGatePairs;

  for (int i = thread; i < kGateRows * kGatePairs; i += kGateThreads) {
    const int64_t f = first_row + i % kGateRows, q = first_pair + i / kGateRows;
    const float scale = f < p.op.features && q < p.op.pairs ? gate_of(p, q, f) : 0.0f;
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    store_shared4(scales + (i % kGateRows * kGatePairs + i / kGateRows) * 4, bits);
  }
  synchronize_block();
  if (thread < 32) {  // the rows that are on, in their order
    int count = 0;
    for (int row = lane; row < kGateRows; row += 32) {
      uint32_t any = 0;
      DDN_UNROLL
      for (int q = 0; q < kGatePairs; ++q) any |= load_shared4(scales + (row * kGatePairs + q) * 4) << 1;  // -0 is 0
      const uint32_t on = ballot(any != 0);
      if (any) store_shared4(rows + (count + count_bits(on & ((1u << lane) - 1))) * 4, static_cast<uint32_t>(row));
      count += count_bits(on);
    }
    if (lane == 0) store_shared4(row_count, static_cast<uint32_t>(count));
  }
  synchronize_block();

  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kGateThreads + thread) * kGateColumns;
  if (column >= p.columns) return;
  const int columns = p.columns - column < kGateColumns ? static_cast<int>(p.columns - column) : kGateColumns;
  using Stored = typename GateWeight<W>::Stored;
  const Stored* weight = static_cast<const Stored*>(p.before ? p.op.fc6_weight : p.op.fc7_weight) + column;
  const int count = static_cast<int>(load_shared4(row_count));
  float sums[kGatePairs][kGateColumns] = {};
  constexpr int kFlight = 4;
  for (int i = 0; i < count; i += kFlight) {
    float w[kFlight][kGateColumns];
    int row[kFlight];
    DDN_UNROLL
    for (int k = 0; k < kFlight; ++k) {
      row[k] = static_cast<int>(load_shared4(rows + (i + k < count ? i + k : i) * 4));
      load_weights<W>(w[k], weight + (first_row + row[k]) * p.columns, columns, p.wide);
    }
    DDN_UNROLL
    for (int k = 0; k < kFlight; ++k) {
      if (i + k >= count) break;
      DDN_UNROLL
      for (int half = 0; half < kGatePairs / 4; ++half) {
        const uint4 bits = load_shared16(scales + (row[k] * kGatePairs + half * 4) * 4);
        float scale[4];
        memcpy(scale, &bits, sizeof bits);
        DDN_UNROLL
        for (int i = 0; i < 4 * kGateColumns; ++i) {
          const int q = i / kGateColumns, c = i % kGateColumns;
          sums[half * 4 + q][c] += scale[q] * w[k][c];
        }
      }
    }
  }
  DDN_UNROLL
  for (int q = 0; q < kGatePairs; ++q) {
    if (first_pair + q >= p.op.pairs) break;
    float* to = p.sums + (static_cast<int64_t>(blockIdx.y) * p.op.pairs + first_pair + q) * p.columns + column;
    DDN_UNROLL
    for (int c = 0; c < kGateColumns; ++c)
      if (c < columns) to[c] = sums[q][c];
  }
}

// y[q] = the shares' sums, in their order. Thread map: one per value.
DDN_GLOBAL void gate_sum_kernel(const GateLaunch p) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, size = p.op.pairs * p.columns;
  if (item >= size) return;
  float sum = 0;
  for (int s = 0; s < p.shares; ++s) sum += p.sums[s * size + item];
  p.op.y[item] = sum;
}

}  // namespace ddn
