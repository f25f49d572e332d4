// What the parts of the convolution's kernel share: its parameters, its tile, where things lie in shared memory.
//
// Shared memory, T taps, 64 bytes = 32 channels a pixel:
//   2 x slots   input: the tile's pixels and a border of one, of this block of channels and of the next
//   4 x outputs weights: a ring of four, one tap of one block of input channels each
//   staged      pooled values (64 bytes) and switches (8 bytes), where the input is unpooled
// After the last product: [kWarpsAcross][pixels] floats of the score.
#pragma once
#include "cuda/conv3x3_plan.h"
#include "cuda/warp.cuh"
#include "params.h"

namespace ddn {

struct Conv3x3Launch {
  const uint16_t* x;             // [N,H,W,I]; pooled [N,H/2,W/2,I]
  const uint8_t* switches;       // [B,H/2,W/2,ceil(I/4)]
  const int64_t* image_of_pass;  // [N] or null
  const uint32_t* weight;        // [O/32,I/32,T,2,16,16] pairs
  const float* bias;             // [O]
  uint16_t* y;                   // [N,H,W,O]; with y_switches [N,H/2,W/2,O]; null with score
  uint8_t* y_switches;           // [N,H/2,W/2,ceil(O/4)] or null
  float* score;                  // [N,H,W] or null; then O is at most a tile's outputs
  const float* score_weight;     // [O]
  const float* score_bias;       // [1]
  float* sums;                   // [tiles,slices] tiles of sums, where there are slices
  unsigned* arrived;             // [tiles] zeros, likewise
  int64_t images;                // B
  int height, width, in_channels, out_channels;
  int in_blocks;                                                         // of 32
  int rows, columns, pitch, tile_rows, tile_columns, out_tiles, slices;  // Conv3x3Plan
  bool wide_input, wide_output;                                          // 16-byte accesses are allowed
  bool wide_switches;                                                    // 8-byte ones
};

enum class Conv3x3Input { map, pooled, image };

template <class T_, Conv3x3Input INPUT, Conv3x3TileKind KIND>
struct Conv3x3Tile {
  using T = T_;  // BFloat16 or Float16
  static constexpr Conv3x3Input kInput = INPUT;
  static constexpr Conv3x3TileSize kSize = tile_size(KIND);
  static constexpr int kThreads = 128, kStages = 4;
  static constexpr int kPixels = 4 * kSize.windows, kOutputs = kSize.outputs;
  static constexpr int kWarpsDown = KIND == Conv3x3TileKind::small ? 1 : 2, kWarpsAcross = 4 / kWarpsDown;
  static constexpr int kRowTiles = kPixels / kWarpsDown / 16;   // of 16 pixels, of a warp
  static constexpr int kGroups = kOutputs / kWarpsAcross / 32;  // of 32 outputs, of a warp
  static constexpr int kTaps = INPUT == Conv3x3Input::image ? 1 : 9;
  static constexpr int kPixelBytes = 64;
  static constexpr int kSlots = INPUT == Conv3x3Input::image ? kPixels : kSize.slots;
  static constexpr int kInputBytes = kSlots * kPixelBytes;
  static constexpr int kInputs = INPUT == Conv3x3Input::image ? 1 : 2;
  static constexpr int kWeightBytes = kOutputs * kPixelBytes;
  static constexpr int kWeightsAt = kInputs * kInputBytes, kStagedAt = kWeightsAt + kStages * kWeightBytes;
  static constexpr int kStagedSwitchesAt = kStagedAt + kSize.staged * kPixelBytes;
  static constexpr int kBytes = INPUT == Conv3x3Input::pooled ? kStagedSwitchesAt + kSize.staged * 8 : kStagedAt;
  static_assert(kPixels % (16 * kWarpsDown) == 0 && kOutputs % (32 * kWarpsAcross) == 0);
  static_assert(kInputBytes % 128 == 0 && kWarpsAcross * kPixels * 4 <= kBytes);
};

// Where this block's tile lies.
struct Conv3x3Place {
  int map;
  int row, column;  // of its first pixel
  int output;       // its first

  // Of block `x` of the grid: those of one tile of pixels follow each other, so that these come from memory once.
  template <class Tile>
  static DDN_DEVICE Conv3x3Place of(const Conv3x3Launch& p, int x) {
    const int tiles = p.tile_rows * p.tile_columns, pixels = x / p.out_tiles, tile = pixels % tiles;
    return {pixels / tiles, tile / p.tile_columns * p.rows * 2, tile % p.tile_columns * p.columns * 2,
            x % p.out_tiles * Tile::kOutputs};
  }
};

// Bytes from the input's first byte to 16 bytes of a slot, `part` 0..3: parts are permuted so that eight neighbouring
// pixels, or four windows' two rows, lie in different banks.
DDN_DEVICE int slot_offset(int slot, int part) {
  return slot * 64 + ((part ^ (slot >> 1 & 3)) << 4);
}

// Channels at[0..7], of which the first `count` exist.
DDN_DEVICE uint4 load_some(const uint16_t* at, int count) {
  uint32_t word[4] = {};
  DDN_UNROLL
  for (int k = 0; k < 8; ++k)
    if (k < count) word[k / 2] |= static_cast<uint32_t>(at[k]) << 16 * (k % 2);
  return {word[0], word[1], word[2], word[3]};
}

}  // namespace ddn
