// How maps lie inside the convolutions, and the ways in and out.
//
// Blocked: channels in blocks of 32, each block a plane [rows, pitch, 32] with pitch = W + 1; pixel x of a row lies at
// x + 1, so that the one zero pixel to its left is also the right border of the row above. A 3x3 kernel then reads at
// nine constant offsets from any pixel, and rows can be walked as one line. In all of the convolution's
// files E, what a map is computed in, is float or BF16; X, what the caller's maps [N,H,W,C] hold, likewise.
#pragma once
#include <type_traits>

#include "cpu/vec.h"
#include "params.h"
#include "switches.h"

namespace ddn::cpu {
namespace {

constexpr int kBlock = 32;

DDN_INLINE int64_t blocks_of(int64_t channels) {
  return (channels + kBlock - 1) / kBlock;
}

DDN_INLINE int channels_in(int64_t block, int64_t channels) {
  return static_cast<int>(least(channels - block * kBlock, kBlock));
}

// Calls part(first, count) for [0, total) in parts of at most `most` and nearly the same size: one of a single pixel
// would waste its loads.
template <class Part>
DDN_INLINE void in_even_parts(int64_t total, int64_t most, Part part) {
  int64_t first = 0;
  for (int64_t parts = (total + most - 1) / most; parts > 0; --parts) {
    const int64_t count = (total - first + parts - 1) / parts;
    part(first, count);
    first += count;
  }
}

// Rows of a blocked map.
template <class E>
struct Rows {
  E* data;        // the first row's left border
  int64_t plane;  // elements from one block of channels to the next
  int64_t pitch;  // pixels from one row to the next

  E* pixel(int64_t block, int64_t row, int64_t x) const {
    return data + block * plane + (row * pitch + x + 1) * kBlock;
  }

  void zero(int64_t blocks, int64_t row) const {
    for (int64_t b = 0; b < blocks; ++b) std::memset(pixel(b, row, -1), 0, (pitch + 1) * kBlock * sizeof(E));
  }

  // Writes the zero pixel before each of `count` rows, and the one after the last.
  void zero_borders(int64_t block, int64_t row, int64_t count) const {
    for (int64_t r = row; r <= row + count; ++r) std::memset(pixel(block, r, -1), 0, kBlock * sizeof(E));
  }
};

DDN_INLINE int at_most_block(int64_t count) {
  return count < 0 ? 0 : count < kBlock ? static_cast<int>(count) : kBlock;
}

// Whether the 27 values under the kernel are one block, and the layer a product of one tap (ddn_fast/packing.py).
DDN_INLINE bool one_tap(const Conv3x3Layer& layer) {
  return 9 * layer.in_channels <= kBlock;
}

DDN_INLINE int64_t in_blocks_of(const Conv3x3Layer& layer) {
  return one_tap(layer) ? 1 : blocks_of(layer.in_channels);
}

// Where the taps lie, from the pixel above and to the left of the one computed; returns how many there are.
DDN_INLINE int tap_offsets(const Conv3x3Layer& layer, int64_t pitch, int64_t (&offsets)[9]) {
  for (int t = 0; t < 9; ++t) offsets[t] = one_tap(layer) ? (pitch + 1) * kBlock : (t / 3 * pitch + t % 3) * kBlock;
  return one_tap(layer) ? 1 : 9;
}

// Bias of one block of outputs, padded with zeros; null where the layer has none.
DDN_INLINE const float* load_bias(const Conv3x3Layer& layer, int64_t block, float (&bias)[kBlock]) {
  if (!layer.bias) return nullptr;
  const int count = channels_in(block, layer.out_channels);
  for (int c = 0; c < kBlock; ++c) bias[c] = c < count ? layer.bias[block * kBlock + c] : 0.0f;
  return bias;
}

// What a kernel is asked for: `count` rows of one layer's result, of blocks of outputs, of maps of the same shape.
template <class E>
struct RowsJob {
  const Conv3x3Layer& layer;
  Rows<E> in;
  int64_t in_row;  // holds the row above the first result
  Rows<E> out;
  int64_t out_row;
  int64_t count;
  int64_t block_begin, block_end;
  int64_t maps = 1;
  int64_t in_map = 0, out_map = 0;  // elements from one map to the next

  Rows<E> in_of(int64_t map) const {
    return {in.data + map * in_map, in.plane, in.pitch};
  }
  Rows<E> out_of(int64_t map) const {
    return {out.data + map * out_map, out.plane, out.pitch};
  }
};

template <class E, class X>
DDN_INLINE void copy_block(E* to, const X* from, int count) {
  if (sizeof(E) == sizeof(X) && count == kBlock) {
    std::memcpy(to, from, kBlock * sizeof(E));
  } else if (count == kBlock) {
    for (int c = 0; c < kBlock; c += kWidth) store(to + c, load(from + c));
  } else {
    for (int c = 0; c < kBlock; c += kWidth) store(to + c, load_some(from + c, at_most_block(count - c)));
  }
}

// Where the switch of each lane's channel begins among the bits of kWidth.
DDN_INLINE UVec switch_shifts() {
  UVec shift;
  for (int k = 0; k < kWidth; ++k) shift[k] = 2 * k;
  return shift;
}

// Positions 0..3 of kWidth channels from their 2-bit switches.
DDN_INLINE UVec positions(const uint8_t* switches) {
  uint32_t bits = 0;
  std::memcpy(&bits, switches, kWidth / 4);
  return (UVec{} + bits) >> switch_shifts() & 3;
}

// The reverse, of `count` channels. Other lanes may hold anything: of infinite inputs the padding gives NaN.
DDN_INLINE void store_positions(uint8_t* switches, UVec position, int count) {
  const UVec moved = position << switch_shifts();
#if defined(__AVX512F__)
  uint32_t bits = static_cast<uint32_t>(_mm512_reduce_or_epi32((__m512i)moved));
#else
  uint32_t bits = 0;
  for (int k = 0; k < kWidth; ++k) bits |= moved[k];
#endif
  if (count < kWidth) bits &= (1u << 2 * count) - 1;
  std::memcpy(switches, &bits, count < kWidth ? (count + 3) / 4 : kWidth / 4);
}

// Positions of `count` channels, whose bytes may end with the map.
DDN_INLINE UVec some_positions(const uint8_t* switches, int count) {
  if (count >= kWidth) return positions(switches);
  uint8_t bytes[kWidth / 4] = {};
  for (int k = 0; k < (count + 3) / 4; ++k) bytes[k] = switches[k];
  return positions(bytes);
}

// The four places of a window from one value: places[dy][dx] gets it where the switch says so, else 0.
// Row y of the unpooled map: only dy = y % 2 is written.
template <class E, class X>
DDN_INLINE void unpool_block(E* left, E* right, const X* from, const uint8_t* switches, int dy, int count) {
  for (int c = 0; c < kBlock; c += kWidth) {
    const int some = at_most_block(count - c);
    const UVec position = some_positions(switches + c / 4, some), value = (UVec)load_some(from + c, some);
    store(left + c, (Vec)((UVec)(position == 2 * dy) & value));
    store(right + c, (Vec)((UVec)(position == 2 * dy + 1) & value));
  }
}

#if defined(__AVX512BW__) && defined(__BMI2__)
constexpr bool kWholeBlocks = true;

// A whole block of bfloat16 in one register. The even and the odd bits of 32 switches are masks over its lanes.
DDN_INLINE void unpool_block(BF16* left, BF16* right, const BF16* from, const uint8_t* switches, int dy) {
  constexpr uint64_t kEven = 0x5555555555555555;
  const uint64_t bits = load_bits<uint64_t>(switches), row = _pext_u64(bits, kEven << 1);
  const uint32_t here = static_cast<uint32_t>(dy ? row : ~row), dx = static_cast<uint32_t>(_pext_u64(bits, kEven));
  const __m512i value = _mm512_loadu_si512(from);
  _mm512_storeu_si512(left, _mm512_maskz_mov_epi16(here & ~dx, value));
  _mm512_storeu_si512(right, _mm512_maskz_mov_epi16(here & dx, value));
}

// The maximum of four and which it was. After ReLU values order as integers do; NaN, its sign cleared, above all.
DDN_INLINE void pool_block(BF16* to, uint8_t* switches, const BF16* top, const BF16* bottom) {
  const __m512i a = _mm512_loadu_si512(top), b = _mm512_loadu_si512(top + kBlock);
  const __m512i c = _mm512_loadu_si512(bottom), d = _mm512_loadu_si512(bottom + kBlock);
  const __m512i upper = _mm512_max_epi16(a, b), lower = _mm512_max_epi16(c, d);
  const uint32_t right_above = _mm512_cmpgt_epi16_mask(b, a), right_below = _mm512_cmpgt_epi16_mask(d, c);
  const uint32_t below = _mm512_cmpgt_epi16_mask(lower, upper);
  _mm512_storeu_si512(to, _mm512_max_epi16(upper, lower));
  constexpr uint64_t kEven = 0x5555555555555555;
  const uint32_t right = (right_above & ~below) | (right_below & below);
  store_bits(switches, _pdep_u64(right, kEven) | _pdep_u64(below, kEven << 1));
}
#else
constexpr bool kWholeBlocks = false;

inline void unpool_block(BF16*, BF16*, const BF16*, const uint8_t*, int) {
}
inline void pool_block(BF16*, uint8_t*, const BF16*, const BF16*) {
}
#endif

// Whether the functions above serve maps held in E for a caller's in X.
template <class E, class X>
constexpr bool kInRegister = kWholeBlocks && std::is_same_v<E, BF16> && std::is_same_v<X, BF16>;

// Row y of map n, as the first layer wants it, into row `row` of `to`. Three kinds of input.
template <class E, class X>
void load_row(const Conv3x3Params& p, int64_t n, int64_t y, const Rows<E>& to, int64_t row, int64_t block_begin,
              int64_t block_end) {
  const int64_t channels = p.layers[0].in_channels;
  const X* x = static_cast<const X*>(p.x);
  for (int64_t b = block_begin; b < block_end; ++b) {
    const int count = channels_in(b, channels);
    if (p.switches) {
      const int64_t h = p.height / 2, w = p.width / 2, i = y / 2;
      const int64_t image = p.image_of_pass ? p.image_of_pass[n] : n;
      const X* from = x + (n * h + i) * w * channels + b * kBlock;
      const int64_t bytes = switch_bytes(channels);
      const uint8_t* switches = p.switches + (image * h + i) * w * bytes + b * (kBlock / 4);
      E* at = to.pixel(b, row, 0);
      const int dy = static_cast<int>(y % 2);
      for (int64_t j = 0; j < w; ++j, at += 2 * kBlock, from += channels, switches += bytes) {
        if constexpr (kInRegister<E, X>)
          if (count == kBlock) {
            unpool_block(at, at + kBlock, from, switches, dy);
            continue;
          }
        unpool_block(at, at + kBlock, from, switches, dy, count);
      }
    } else {
      const X* from = x + (n * p.height + y) * p.width * channels + b * kBlock;
      for (int64_t j = 0; j < p.width; ++j, from += channels) copy_block(to.pixel(b, row, j), from, count);
    }
    to.zero_borders(b, row, 1);
  }
}

// The same for a first layer whose whole kernel fits one block: "channel" tap * C + c (weights with one tap).
// lines: 3 * ((W + 2) * C + 16) elements of scratch.
template <class E, class X>
void load_kernel_row(const Conv3x3Params& p, int64_t n, int64_t y, const Rows<E>& to, int64_t row, E* lines) {
  const int64_t channels = p.layers[0].in_channels, run = 3 * channels, line = (p.width + 2) * channels + 16;
  std::memset(lines, 0, 3 * line * sizeof(E));
  for (int ky = 0; ky < 3; ++ky) {
    const int64_t from_row = y + ky - 1;
    if (from_row < 0 || from_row >= p.height) continue;
    const X* from = static_cast<const X*>(p.x) + (n * p.height + from_row) * p.width * channels;
    const int64_t count = p.width * channels;
    for (int64_t k = 0; k < count; k += kWidth)
      store_some(lines + ky * line + channels + k, load_some(from + k, at_most_block(count - k)),
                 at_most_block(count - k));
  }
  E* at = to.pixel(0, row, 0);
  for (int64_t j = 0; j < p.width; ++j, at += kBlock) {
    // 16 elements where 9 at most are wanted: what is too much is overwritten by what comes next
    for (int ky = 0; ky < 3; ++ky) std::memcpy(at + ky * run, lines + ky * line + j * channels, 16 * sizeof(E));
    std::memset(at + 3 * run, 0, (kBlock - 3 * run) * sizeof(E));
  }
  to.zero_borders(0, row, 1);
}

// Row y of the last layer's result to the caller's map.
template <class E, class X>
void store_row(const Conv3x3Params& p, int64_t n, int64_t y, const Rows<E>& from, int64_t row, int64_t channels) {
  for (int64_t b = 0; b < blocks_of(channels); ++b) {
    const int count = channels_in(b, channels);
    X* to = static_cast<X*>(p.y) + (n * p.height + y) * p.width * channels + b * kBlock;
    const E* at = from.pixel(b, row, 0);
    for (int64_t j = 0; j < p.width; ++j, at += kBlock, to += channels)
      for (int c = 0; c < count; c += kWidth) store_some(to + c, load(at + c), count - c);
  }
}

// Rows y and y + 1 (y even), pooled, with switches. Strictly greater or NaN wins, as in torch: the first of equals.
template <class E, class X>
void pool_rows(const Conv3x3Params& p, int64_t n, int64_t y, const Rows<E>& from, int64_t row, int64_t channels) {
  const int64_t h = p.height / 2, w = p.width / 2, bytes = switch_bytes(channels);
  for (int64_t b = 0; b < blocks_of(channels); ++b) {
    const int count = channels_in(b, channels);
    const int64_t out = (n * h + y / 2) * w;
    X* to = static_cast<X*>(p.y) + out * channels + b * kBlock;
    uint8_t* switches = p.y_switches + out * bytes + b * (kBlock / 4);
    const E *top = from.pixel(b, row, 0), *bottom = from.pixel(b, row + 1, 0);
    for (int64_t j = 0; j < w; ++j, top += 2 * kBlock, bottom += 2 * kBlock, to += channels, switches += bytes) {
      if constexpr (kInRegister<E, X>)
        if (count == kBlock) {
          pool_block(to, switches, top, bottom);
          continue;
        }
      for (int c = 0; c < count; c += kWidth) {
        Vec best = load(top + c);
        UVec position{};
        const Vec others[3] = {load(top + kBlock + c), load(bottom + c), load(bottom + kBlock + c)};
        for (uint32_t k = 0; k < 3; ++k) {
          const UVec beats = (UVec)(others[k] > best) | (UVec)(others[k] != others[k]);
          best = (Vec)((beats & (UVec)others[k]) | (~beats & (UVec)best));
          position = (beats & (k + 1)) | (~beats & position);
        }
        store_some(to + c, best, count - c);
        store_positions(switches + c / 4, position, count - c);
      }
    }
  }
}

// Row y times the score's weights.
template <class E>
void score_row(const Conv3x3Params& p, int64_t n, int64_t y, const Rows<E>& from, int64_t row, int64_t channels) {
  float* to = p.score + (n * p.height + y) * p.width;
  const int64_t blocks = blocks_of(channels);
  for (int64_t j = 0; j < p.width; ++j) {
    Vec total{};
    for (int64_t b = 0; b < blocks; ++b) {
      const int count = channels_in(b, channels);
      const E* at = from.pixel(b, row, j);
      for (int c = 0; c < count; c += kWidth)
        total += load(at + c) * load_some(p.score_weight + b * kBlock + c, count - c);
    }
    to[j] = sum(total) + p.score_bias[0];
  }
}

}  // namespace
}  // namespace ddn::cpu
