// What Winograd's transform works on: tiles of 4x4 outputs, and single outputs where results may tie.
//
// Where an image is constant, as in its padding, or the same along a line, neighbouring outputs of a convolution see
// the same inputs. A plain sum gives them the same bits, so that they tie, and of a pooling window the first wins, as
// it must. Winograd rounds differently at each of a tile's 16 places. Layers that keep ties therefore compute an output
// alone whenever its 3x3 inputs are equal along rows, columns or a diagonal: as place 0 of a tile whose other inputs
// are zero, which makes it a function of those nine inputs and of nothing else. That finds every tie between
// neighbours: inputs that are the same one pixel to the left are equal along their rows, here and there, and so for
// the other directions. And what ties in one layer is what makes the next one's inputs equal.
//
// Outputs that follow each other in a row of tiles with the same inputs are computed once, so that areas which are
// constant cost less than others. What is equal is asked of kWidth channels first, which ends it for nearly all tiles
// of a photograph.
#pragma once
#include "cpu/conv3x3_maps.h"

namespace ddn::cpu {
namespace {

DDN_INLINE int at_most(int64_t n, int most) {
  return n < most ? static_cast<int>(n) : most;
}

constexpr int kAllOutputs = 0xffff;  // a bit for each of a tile's, by rows

// Where a tile's 6x6 inputs and its outputs lie, in elements from the first block's plane.
struct Tile {
  int64_t in, out;
  int in_rows, in_columns;  // that exist, the rest being zeros
  int outputs;              // that exist
};

// The tiles of a job, numbered across, then down, then from map to map.
struct Tiles {
  const RowsJob<float>& job;
  int64_t width = job.in.pitch - 1, across = (width + 3) / 4, of_map = (job.count + 3) / 4 * across;

  int64_t total() const {
    return job.maps * of_map;
  }

  Tile operator[](int64_t tile) const {
    const int64_t map = tile / of_map, y = tile % of_map / across * 4, x = tile % across * 4;
    const int rows = at_most(job.count - y, 4), columns = at_most(width - x, 4);
    const int row = (1 << columns) - 1;
    return {map * job.in_map + ((job.in_row + y) * job.in.pitch + x) * kBlock,
            map * job.out_map + ((job.out_row + y) * job.out.pitch + x + 1) * kBlock, rows + 2, columns + 2,
            (row | row << 4 | row << 8 | row << 12) & ((1 << 4 * rows) - 1)};
  }
};

// Outputs of a tile whose inputs are equal: a bit for each.
struct Equal {
  int along_rows, along_columns, anyhow;
};

DDN_INLINE bool same(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_cmpneq_ps_mask((__m512)a, (__m512)b) == 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NEQ_UQ)) == 0;
#else
  bool all = true;
  for (int k = 0; k < kWidth; ++k) all &= a[k] == b[k];
  return all;
#endif
}

// Which neighbours among a tile's inputs are equal so far: of each row a bit for each column.
struct Neighbours {
  int across[6];  // the one to the right
  int down[5];    // the one below
  int right[5];   // the one below to the right
  int left[5];    // of the one to the right, the one below

  // Those that kWidth more channels leave equal.
  DDN_INLINE void compare(const float* from, int64_t row, int rows, int columns) {
    Vec above[6];
    for (int i = 0; i < rows; ++i, from += row) {
      Vec here[6];
      int to_right = 0, below = 0, below_right = 0, below_left = 0;
#pragma GCC unroll 6
      for (int j = 0; j < columns; ++j) {
        here[j] = load(from + j * kBlock);
        if (j > 0) to_right |= same(here[j - 1], here[j]) << (j - 1);
        if (i > 0) {
          below |= same(above[j], here[j]) << j;
          if (j > 0) below_right |= same(above[j - 1], here[j]) << (j - 1);
          if (j > 0) below_left |= same(above[j], here[j - 1]) << (j - 1);
        }
      }
      across[i] &= to_right;
      if (i > 0) down[i - 1] &= below, right[i - 1] &= below_right, left[i - 1] &= below_left;
#pragma GCC unroll 6
      for (int j = 0; j < columns; ++j) above[j] = here[j];
    }
  }

  Equal outputs() const {
    Equal found{};
    for (int i = 0; i < 4; ++i) {
      const int rows = across[i] & across[i + 1] & across[i + 2], columns = down[i] & down[i + 1];
      const int one = right[i] & right[i + 1], other = left[i] & left[i + 1];
      const int along_rows = rows & rows >> 1 & 15, along_columns = columns & columns >> 1 & columns >> 2 & 15;
      found.along_rows |= along_rows << 4 * i;
      found.along_columns |= along_columns << 4 * i;
      found.anyhow |= (along_rows | along_columns | (one & one >> 1 & 15) | (other & other >> 1 & 15)) << 4 * i;
    }
    return found;
  }
};

// Of a tile of the job's input; none where the layer need not keep ties.
inline Equal equal_inputs(const RowsJob<float>& job, const Tile& tile) {
  if (!job.layer.keep_ties) return {};
  const int64_t blocks = in_blocks_of(job.layer);
  Neighbours all;
  std::memset(&all, 0xff, sizeof all);
  Equal found{};
  for (int64_t b = 0; b < blocks; ++b)
    for (int v = 0; v < kBlock; v += kWidth) {
      const float* from = job.in.data + b * job.in.plane + tile.in + v;
      if (tile.in_rows == 6 && tile.in_columns == 6)
        all.compare(from, job.in.pitch * kBlock, 6, 6);
      else
        all.compare(from, job.in.pitch * kBlock, tile.in_rows, tile.in_columns);
      found = all.outputs();
      if (!(found.anyhow & tile.outputs)) return {};
    }
  return found;
}

// What is computed at once: a tile, or one output alone.
struct Part {
  int64_t in;
  int in_rows, in_columns;
  int first, last;  // targets
  bool alone;
};

// Outputs of one tile that take their values from a part; from one that is alone, all the same.
struct Target {
  int64_t out;
  int outputs;
  int next;  // of the part, if this is not its last
};

// The parts of some tiles, in their order.
class Parts {
 public:
  static size_t bytes(const Conv3x3Layer& layer, int64_t tiles) {
    return (tiles * most(layer) * (sizeof(Part) + sizeof(Target)) + 63) / 64 * 64;
  }

  Parts(void* memory, const Conv3x3Layer& layer, int64_t tiles)
      : parts_(static_cast<Part*>(memory)), targets_(reinterpret_cast<Target*>(parts_ + tiles * most(layer))) {
  }

  int64_t count() const {
    return parts_count_;
  }
  const Part& operator[](int64_t part) const {
    return parts_[part];
  }
  const Target& target(int k) const {
    return targets_[k];
  }

  // Cuts the next tile into what is computed together and what alone. An output whose inputs are those of the one
  // before it, in this tile or the one before, or of the one above it, takes its value. That the tile before may end
  // another row does no harm: inputs that are equal up to its border are zeros, as are those from the next border on.
  void add(const Tile& tile, const Equal& equal, int64_t pitch) {
    const int alone = equal.anyhow & tile.outputs, along_rows = equal.along_rows & alone;
    if (alone != tile.outputs)
      open({tile.in, tile.in_rows, tile.in_columns, 0, 0, false}, tile.out, tile.outputs & ~alone);
    int part_of[16];
    for (int k = 0; k < 16 && alone; ++k) {
      if (!(alone >> k & 1)) continue;
      const auto both = [&](int which, int other) { return (which & alone) >> k & (which & alone) >> other & 1; };
      if (k % 4 == 0 && before_[k / 4] >= 0 && along_rows >> k & 1)
        part_of[k] = before_[k / 4];
      else if (k % 4 && both(equal.along_rows, k - 1))
        part_of[k] = part_of[k - 1];
      else if (k >= 4 && both(equal.along_columns, k - 4))
        part_of[k] = part_of[k - 4];
      else
        part_of[k] = open({tile.in + (k / 4 * pitch + k % 4) * kBlock, 3, 3, 0, 0, true}, tile.out, 0);
      take(parts_[part_of[k]], tile.out, 1 << k);
    }
    for (int i = 0; i < 4; ++i) before_[i] = along_rows >> (4 * i + 3) & 1 ? part_of[4 * i + 3] : -1;
  }

 private:
  Part* parts_;
  Target* targets_;
  int parts_count_ = 0, targets_count_ = 0;
  int before_[4] = {-1, -1, -1, -1};  // the part of each row's last output in the tile before, if equal along its row

  static int64_t most(const Conv3x3Layer& layer) {
    return layer.keep_ties ? 16 : 1;
  }

  int open(Part part, int64_t out, int outputs) {
    part.first = part.last = targets_count_;
    targets_[targets_count_++] = {out, outputs, 0};
    parts_[parts_count_] = part;
    return parts_count_++;
  }

  void take(Part& part, int64_t out, int output) {
    if (targets_[part.last].out != out) {
      targets_[part.last].next = targets_count_;
      part.last = targets_count_;
      targets_[targets_count_++] = {out, 0, 0};
    }
    targets_[part.last].outputs |= output;
  }
};

}  // namespace
}  // namespace ddn::cpu
