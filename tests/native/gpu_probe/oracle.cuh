// A layer by the plain formula in float32 on the device, one thread an output; random values for it; and how far a
// kernel's result is from it.
#pragma once
#include <cmath>

#include "cuda/conv3x3_tile.cuh"
#include "device_array.h"

namespace ddn::probe {

#ifdef DDN_EMU
template <class V>
void atomicAdd(V* to, V value) {
  *to += value;
}
#endif

struct RandomLaunch {
  void* to;
  int64_t count;
  uint32_t seed;
  float scale;
  bool relu;
};

// Values of -scale to scale, negative ones replaced by zeros where `relu`; V: float, uint8_t (any bits), or 16 bits of
// T.
template <class T, class V>
DDN_GLOBAL void random_kernel(const RandomLaunch p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= p.count) return;
  uint32_t bits = static_cast<uint32_t>(at) * 2654435761u + p.seed;
  bits = (bits ^ bits >> 16) * 0x85ebca6bu;
  bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
  bits ^= bits >> 16;
  float value = (static_cast<float>(bits >> 8) / 8388608.0f - 1.0f) * p.scale;
  if (p.relu && value < 0) value = 0;
  if constexpr (sizeof(V) == 4)
    static_cast<V*>(p.to)[at] = value;
  else if constexpr (sizeof(V) == 1)
    static_cast<V*>(p.to)[at] = static_cast<V>(bits);
  else
    static_cast<V*>(p.to)[at] = static_cast<V>(narrow_two<T>(value, 0.0f));
}

template <class T, class V>
void randomize(const DeviceArray<V>& to, uint32_t seed, float scale = 1, bool relu = false) {
  const RandomLaunch p{to.at(), static_cast<int64_t>(to.count()), seed, scale, relu};
  DDN_LAUNCH((random_kernel<T, V>), static_cast<unsigned>((to.count() + 255) / 256), 256, nullptr, p);
  finish("random values");
}

struct OracleLaunch {
  Conv3x3Launch layer;
  float* y;  // [N,H,W,O]
  int64_t count;
};

template <class T>
DDN_GLOBAL void oracle_kernel(const OracleLaunch launch) {
  const Conv3x3Launch& p = launch.layer;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= launch.count) return;
  const int64_t pixel = at / p.out_channels, map = pixel / (p.height * p.width);
  const int o = static_cast<int>(at % p.out_channels), row = static_cast<int>(pixel / p.width % p.height);
  const int column = static_cast<int>(pixel % p.width), shift = p.switches ? 1 : 0;
  float sum = p.bias[o];
  for (int tap = 0; tap < 9; ++tap) {
    const int i = row + tap / 3 - 1, j = column + tap % 3 - 1;
    if (i < 0 || i >= p.height || j < 0 || j >= p.width) continue;
    const int64_t in_map = static_cast<int64_t>(i >> shift) * (p.width >> shift) + (j >> shift);
    const int64_t pooled = (p.height >> shift) * (p.width >> shift);
    const uint16_t* x = p.x + (map * pooled + in_map) * p.in_channels;
    const uint8_t* switches = nullptr;
    if (shift) switches = p.switches + (p.image_of_pass[map] * pooled + in_map) * (p.in_channels / 4);
    for (int c = 0; c < p.in_channels; ++c) {
      if (shift && (switches[c / 4] >> 2 * (c % 4) & 3) != i % 2 * 2 + j % 2) continue;
      const int64_t block = (static_cast<int64_t>(o / 32) * p.in_blocks + c / 32) * 9 + tap;
      const uint32_t two = p.weight[block * 512 + o % 32 / 16 * 256 + c % 32 / 2 * 16 + o % 16];
      sum += widen<T>(x[c]) * widen<T>(static_cast<uint16_t>(two >> 16 * (c % 2)));
    }
  }
  launch.y[at] = sum > 0 ? sum : 0;
}

struct Difference {
  double squares, wanted;    // of differences, of the oracle's values
  unsigned long long wrong;  // NaN, or switches that name no (nearly) largest value
};

struct CompareLaunch {
  Conv3x3Launch layer;
  const float* full;  // the oracle's [N,H,W,O]
  int64_t count;      // of the result's values
  Difference* difference;
};

// Threads take the result's values in turn.
template <class T>
DDN_GLOBAL void compare_kernel(const CompareLaunch launch) {
  const Conv3x3Launch& p = launch.layer;
  const float* const full = launch.full;
  double squares = 0, all = 0;
  unsigned long long wrong = 0;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < launch.count;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    float got, wanted;
    if (p.score) {
      got = p.score[at], wanted = p.score_bias[0];
      for (int o = 0; o < p.out_channels; ++o) wanted += full[at * p.out_channels + o] * p.score_weight[o];
    } else if (p.y_switches) {
      const int o = static_cast<int>(at % p.out_channels), height = p.height / 2, width = p.width / 2;
      const int64_t pixel = at / p.out_channels, map = pixel / (height * width);
      const int64_t i = pixel / width % height * 2, j = pixel % width * 2;
      const auto value = [&](int place) {
        return full[((map * p.height + i + place / 2) * p.width + j + place % 2) * p.out_channels + o];
      };
      wanted = fmaxf(fmaxf(value(0), value(1)), fmaxf(value(2), value(3)));
      got = widen<T>(p.y[at]);
      const int named = p.y_switches[pixel * (p.out_channels / 4) + o / 4] >> 2 * (o % 4) & 3;
      wrong += value(named) < wanted * 0.98f - 1e-3f || (wanted == 0 && got == 0 && named != 0);
    } else {
      got = widen<T>(p.y[at]), wanted = full[at];
    }
    const double apart = static_cast<double>(got) - static_cast<double>(wanted);
    wrong += apart != apart;
    if (apart != apart) continue;
    squares += apart * apart, all += static_cast<double>(wanted) * static_cast<double>(wanted);
  }
  atomicAdd(&launch.difference->squares, squares);
  atomicAdd(&launch.difference->wanted, all);
  if (wrong) atomicAdd(&launch.difference->wrong, wrong);
}

}  // namespace ddn::probe
