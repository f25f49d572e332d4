// The ways in and out of a layer in training: maps of the caller, [N,H,W,C] in X, and blocked rows of float.
//
// In:  relu(scale * x + shift), unpooled by switches;   or the gradient of y, with what its moments add to it
// Out: y and the moments of its rows;                   or the gradient of x, scale and shift
//
// Moments are taken row by row and put together in float64 (deconv3x3_moments.cpp): they depend neither on threads nor
// on how rows were cut, and no large sum is subtracted from another.
#pragma once
#include "cpu/conv3x3_maps.h"

namespace ddn::cpu {
namespace {

// Vectors of one value a channel, of a block of which `count` channels exist.
struct PerChannel {
  Vec of[kBlock / kWidth];

  PerChannel(const float* values, int count) {
    for (int v = 0; v < kBlock; v += kWidth) of[v / kWidth] = load_some(values + v, at_most_block(count - v));
  }
};

// Where two rows of workspace of one row of a map begin: [rows,2,blocks,32].
DDN_INLINE float* row_sums(float* rows, int64_t row, int64_t blocks, int64_t block) {
  return rows + (2 * row * blocks + block) * kBlock;
}

// What comes back to one pixel of the map that a score is made of: d, its two gradients, cut off where it was.
DDN_INLINE Vec score_gradient(Vec activated, Vec w0, Vec w1, const float* d) {
  return (Vec)((UVec)(activated > 0) & (UVec)(w0 * splat(d[0]) + w1 * splat(d[1])));
}

// What a layer convolves. line() writes the W pixels of one row and block.
template <class X>
struct ActivatedIn {
  const X* x;
  const float *scale, *shift;
  const uint8_t* switches;
  int64_t height, width, channels;

  void line(int64_t n, int64_t y, int64_t block, float* to) const {
    const int count = channels_in(block, channels);
    const PerChannel a(scale + block * kBlock, count), b(shift + block * kBlock, count);
    if (switches)
      unpooled(n, y, block, count, a, b, to);
    else
      plain(n, y, block, count, a, b, to);
  }

 private:
  void plain(int64_t n, int64_t y, int64_t block, int count, const PerChannel& a, const PerChannel& b,
             float* to) const {
    const X* from = x + (n * height + y) * width * channels + block * kBlock;
    for (int64_t j = 0; j < width; ++j, from += channels, to += kBlock)
      for (int v = 0; v < kBlock; v += kWidth)
        store(to + v, relu(a.of[v / kWidth] * load_some(from + v, at_most_block(count - v)) + b.of[v / kWidth]));
  }

  void unpooled(int64_t n, int64_t y, int64_t block, int count, const PerChannel& a, const PerChannel& b,
                float* to) const {
    const int64_t w = width / 2, at = (n * (height / 2) + y / 2) * w, bytes = switch_bytes(channels);
    const uint32_t dy = static_cast<uint32_t>(y % 2);
    const X* from = x + at * channels + block * kBlock;
    const uint8_t* switched = switches + at * bytes + block * (kBlock / 4);
    for (int64_t j = 0; j < w; ++j, from += channels, switched += bytes, to += 2 * kBlock)
      for (int v = 0; v < kBlock; v += kWidth) {
        const int some = at_most_block(count - v);
        const UVec value = (UVec)relu(a.of[v / kWidth] * load_some(from + v, some) + b.of[v / kWidth]);
        const UVec position = some_positions(switched + v / 4, some);
        store(to + v, (Vec)((UVec)(position == 2 * dy) & value));
        store(to + kBlock + v, (Vec)((UVec)(position == 2 * dy + 1) & value));
      }
  }
};

// What y's mean and variance add to its gradient: grad_mean / M + grad_var * 2 * (y - mean) / M, M = N * H * W.
template <class X>
struct MomentsGradient {
  const X* y;
  const float *mean, *grad_mean, *grad_var;
  float one_by_m;

  // Of one block of channels.
  struct Block {
    PerChannel center, of_mean, of_var;
    float one_by_m;

    DDN_INLINE Vec at(int k, Vec y) const {
      return one_by_m * of_mean.of[k] + (2 * one_by_m * of_var.of[k]) * (y - center.of[k]);
    }
  };
  Block block(int64_t block, int count) const {
    const int64_t at = block * kBlock;
    return {PerChannel(mean + at, count), PerChannel(grad_mean + at, count), PerChannel(grad_var + at, count),
            one_by_m};
  }
};

// The whole gradient of y: what came for y itself, and by way of its mean and variance.
template <class X>
struct GradientIn {
  const X* grad_y;
  MomentsGradient<X> moments;
  int64_t height, width, channels;

  void line(int64_t n, int64_t row, int64_t block, float* to) const {
    const int count = channels_in(block, channels);
    const int64_t at = (n * height + row) * width * channels + block * kBlock;
    const auto of_moments = moments.block(block, count);
    const X *g = grad_y + at, *y = moments.y + at;
    for (int64_t j = 0; j < width; ++j, g += channels, y += channels, to += kBlock)
      for (int v = 0; v < kBlock; v += kWidth) {
        const int some = at_most_block(count - v);
        store(to + v, load_some(g + v, some) + of_moments.at(v / kWidth, load_some(y + v, some)));
      }
  }
};

// The same where what came for y is what seg_score gives back: two numbers a pixel stand for all channels.
template <class X>
struct ScoreGradientIn {
  const float *grad_score, *scale, *shift, *weight;  // of the score: [N,H,W,2], [O], [O], [2,O]
  MomentsGradient<X> moments;
  int64_t height, width, channels;

  void line(int64_t n, int64_t row, int64_t block, float* to) const {
    const int count = channels_in(block, channels);
    const int64_t first = block * kBlock, pixel = (n * height + row) * width;
    const PerChannel a(scale + first, count), b(shift + first, count), w0(weight + first, count),
        w1(weight + channels + first, count);
    const auto of_moments = moments.block(block, count);
    const float* d = grad_score + 2 * pixel;
    const X* y = moments.y + pixel * channels + first;
    for (int64_t j = 0; j < width; ++j, d += 2, y += channels, to += kBlock)
      for (int v = 0; v < kBlock; v += kWidth) {
        const int k = v / kWidth;
        const Vec value = load_some(y + v, at_most_block(count - v));
        const Vec g = score_gradient(a.of[k] * value + b.of[k], w0.of[k], w1.of[k], d);
        store(to + v, a.of[k] * g + of_moments.at(k, value));
      }
  }
};

// y, and of each row the mean and the sum of squares around it.
template <class X>
struct MomentsOut {
  X* y;
  float* rows;
  int64_t height, width, channels;

  void rows_out(int64_t n, int64_t row, int64_t count, const Rows<float>& from, int64_t from_row) const {
    for (int64_t k = 0; k < count; ++k)
      for (int64_t b = 0; b < blocks_of(channels); ++b) line(n * height + row + k, b, from.pixel(b, from_row + k, 0));
  }

 private:
  void line(int64_t row, int64_t block, const float* from) const {
    const int count = channels_in(block, channels);
    X* to = y + row * width * channels + block * kBlock;
    float* sums = row_sums(rows, row, blocks_of(channels), block);
    for (int v = 0; v < kBlock; v += kWidth) {
      const int some = at_most_block(count - v);
      Vec total{}, squares{};
      for (int64_t j = 0; j < width; ++j) {
        const Vec value = load(from + j * kBlock + v);
        total += value;
        if (some > 0) store_some(to + j * channels + v, value, some);
      }
      const Vec mean = total / static_cast<float>(width);
      for (int64_t j = 0; j < width; ++j) {
        const Vec off = load(from + j * kBlock + v) - mean;
        squares += off * off;
      }
      store(sums + v, mean);
      store(sums + blocks_of(channels) * kBlock + v, squares);
    }
  }
};

// The gradient of x from that of what was convolved; of each row the sums that are shift's and scale's gradients.
template <class X>
struct GradientOut {
  const X* x;
  const float *scale, *shift;
  const uint8_t* switches;
  X* grad_x;
  float* rows;
  int64_t height, width, channels;  // of x

  void rows_out(int64_t n, int64_t row, int64_t count, const Rows<float>& from, int64_t from_row) const {
    const int64_t step = switches ? 2 : 1;
    for (int64_t k = 0; k < count; k += step)
      for (int64_t b = 0; b < blocks_of(channels); ++b) {
        const float* top = from.pixel(b, from_row + k, 0);
        if (switches)
          line<true>(n * height + (row + k) / 2, b, top, from.pixel(b, from_row + k + 1, 0));
        else
          line<false>(n * height + row + k, b, top, nullptr);
      }
  }

 private:
  template <bool Pooled>
  void line(int64_t row, int64_t block, const float* top, const float* bottom) const {
    const int count = channels_in(block, channels);
    const PerChannel a(scale + block * kBlock, count), b(shift + block * kBlock, count);
    const int64_t at = row * width * channels + block * kBlock, bytes = switch_bytes(channels);
    const uint8_t* switched = Pooled ? switches + row * width * bytes + block * (kBlock / 4) : nullptr;
    float* sums = row_sums(rows, row, blocks_of(channels), block);
    for (int v = 0; v < kBlock; v += kWidth) {
      const int some = at_most_block(count - v);
      const Vec scales = a.of[v / kWidth], shifts = b.of[v / kWidth];
      Vec of_shift{}, of_scale{};
      for (int64_t j = 0; j < width && some > 0; ++j) {
        Vec g;
        if constexpr (Pooled)
          g = picked(top + 2 * j * kBlock + v, bottom + 2 * j * kBlock + v,
                     some_positions(switched + j * bytes + v / 4, some));
        else
          g = load(top + j * kBlock + v);
        const Vec value = load_some(x + at + j * channels + v, some);
        g = (Vec)((UVec)(scales * value + shifts > 0) & (UVec)g);
        of_shift += g;
        of_scale += g * value;
        store_some(grad_x + at + j * channels + v, scales * g, some);
      }
      store(sums + v, of_shift);
      store(sums + blocks_of(channels) * kBlock + v, of_scale);
    }
  }

  // Of the four places of a window the one that the switch names.
  static DDN_INLINE Vec picked(const float* top, const float* bottom, UVec position) {
    const UVec right = (UVec)((position & 1) != 0), below = (UVec)(position > 1);
    const UVec above = (right & (UVec)load(top + kBlock)) | (~right & (UVec)load(top));
    const UVec under = (right & (UVec)load(bottom + kBlock)) | (~right & (UVec)load(bottom));
    return (Vec)((below & under) | (~below & above));
  }
};

// Both ways together, as the stage (conv3x3_stage.h) wants them.
template <class In, class Out>
struct TrainingIo {
  const In& in;
  const Out& out;

  size_t lines_bytes() const {
    return 0;
  }
  void load(int64_t n, int64_t y, const Rows<float>& to, int64_t row, int64_t block_begin, int64_t block_end,
            void*) const {
    for (int64_t b = block_begin; b < block_end; ++b) {
      in.line(n, y, b, to.pixel(b, row, 0));
      to.zero_borders(b, row, 1);
    }
  }
  void finish(int64_t n, int64_t y, int64_t count, const Rows<float>& from, int64_t row) const {
    out.rows_out(n, y, count, from, row);
  }
};

}  // namespace
}  // namespace ddn::cpu
