// What the parts of the convolution's kernel for sm_90a share: its tile, where things lie in shared memory, its
// barriers.
//
// Shared memory:
//   2 x 4 planes input: 8 channels (16 bytes) of the tile's pixels and a border of one, row by row; four planes are a
//                block of 32 channels, of this block and of the next. A plane is 1 slot more than a multiple of 8, so
//                that four lanes with the parts of one pixel, and four with those of the pixel 4 away, write to
//                different banks.
//   4 x 12 KiB   weights: a ring; one row of the kernel (3 taps) of one block of input channels, for two out blocks
//   each staged       pooled values (16 bytes a thread) and switches (8 bytes a quad), where the input is unpooled
//   barriers     of each input buffer and of each stage of the ring: full, empty
// After the last product: [4 warps][pixels] floats of the score.
#pragma once
#include "cuda/conv3x3_tile.cuh"
#include "cuda/warpgroup.cuh"

namespace ddn {

template <class T_, Conv3x3TileKind KIND>
struct Conv3x3WgmmaTile {
  using T = T_;                                                               // BFloat16 or Float16
  static constexpr int kThreads = 256, kConsumers = 128, kInputThreads = 96;  // the last warp brings weights
  // Of a thread: 128 at launch, so that two blocks share a multiprocessor.
  static constexpr int kConsumerRegisters = 216, kProducerRegisters = 40;
  static constexpr int kStrips = wgmma_shape(KIND).strips, kRows = wgmma_shape(KIND).rows;
  static constexpr int kOutputs = tile_size(KIND).outputs, kPixels = kStrips * kRows * 8;
  static constexpr int kValues = kRows * 4;  // of a strip's sums, of a thread
  static constexpr int kInputRows = kRows + 2, kPitch = kStrips * 8 + 2;
  static constexpr int kPlaneBytes = tile_size(KIND).slots * 16, kInputBytes = 4 * kPlaneBytes;
  static constexpr int kStages = 4, kOutBlockBytes = 3 * 2048, kWeightBytes = 2 * kOutBlockBytes;
  static constexpr int kPooledRows = kRows / 2 + 2, kPooledColumns = kStrips * 4 + 2;
  static constexpr int kStaged = (kPooledRows * kPooledColumns * 4 + kInputThreads - 1) / kInputThreads;  // of a thread
  static constexpr int kWeightsAt = 2 * kInputBytes, kStagedAt = kWeightsAt + kStages * kWeightBytes;
  static constexpr int kStagedSwitchesAt = kStagedAt + kStaged * kInputThreads * 16;
  static constexpr int kBarriersAt = kStagedSwitchesAt + kStaged * kInputThreads / 4 * 8;
  static constexpr int kBytes = kBarriersAt + (2 * 2 + 2 * kStages) * 8;
  static_assert(kThreads / 2 * (kConsumerRegisters + kProducerRegisters) <= 32768);
  static_assert(2 * (kBytes + 1024) <= 228 << 10);  // two blocks a multiprocessor
  static_assert(kInputRows * kPitch <= kPlaneBytes / 16 && kPlaneBytes / 16 % 8 == 1);
  static_assert(kPixels == 4 * tile_size(KIND).windows && kWeightsAt % 128 == 0 && 4 * kPixels * 4 <= kWeightsAt);
};

template <class Tile>
struct Conv3x3Barriers {
  Shared at;

  DDN_DEVICE Shared input_full(int buffer) const {
    return at + buffer * 8;
  }
  DDN_DEVICE Shared input_empty(int buffer) const {
    return at + (2 + buffer) * 8;
  }
  DDN_DEVICE Shared weights_full(int stage) const {
    return at + (4 + stage) * 8;
  }
  DDN_DEVICE Shared weights_empty(int stage) const {
    return at + (4 + Tile::kStages + stage) * 8;
  }

  // By one thread, before the block's barrier.
  DDN_DEVICE void init() const {
    constexpr int kWarps = Tile::kConsumers / 32;
    for (int buffer = 0; buffer < 2; ++buffer) {
      init_barrier(input_full(buffer), Tile::kInputThreads);
      init_barrier(input_empty(buffer), kWarps);
    }
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      init_barrier(weights_full(stage), 1);
      init_barrier(weights_empty(stage), kWarps);
    }
    fence_barriers();
  }
};

}  // namespace ddn
