// A stage of 3x3 convolutions: how rows, channels and threads are cut. Kernel computes rows of one layer, Io brings
// them in from the caller's maps and out to them:
//
//   struct Kernel {
//     using E = float or BF16;                              // what maps are held in between
//     static void enter(), leave();                         // around everything a thread computes
//     static size_t scratch_bytes(const Conv3x3Layer&);
//     static int64_t row_unit(const Conv3x3Layer&);         // rows it computes together, from a multiple of it on
//     static void rows(const RowsJob<E>&, void* scratch);
//   };
//   struct Io {
//     size_t lines_bytes() const;  // scratch of load
//     void load(int64_t n, int64_t y, const Rows<E>& to, int64_t row, int64_t block_begin, int64_t block_end,
//               void* lines) const;                               // row y of map n, with its borders
//     void finish(int64_t n, int64_t y, int64_t count, const Rows<E>& from, int64_t row) const;
//   };                             // rows [y, y + count) of map n; y is even, and so is count but at an odd height
//
// Two ways. Large maps go depth-first: a thread has a band of rows and takes a few of them through all layers while
// they are in its cache, keeping two rows of each layer's input for the next few. Small maps with large weights go
// layer by layer: a thread has blocks of output channels, so that every weight is read once. Neither changes what is
// added to what: results do not depend on the number of threads.
#pragma once
#include "cpu/conv3x3_maps.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace ddn::cpu {
namespace {

// Bands begin at multiples of it, and so do the steps within: every kernel's row_unit divides it.
constexpr int64_t kUnit = 4;
constexpr int64_t kSlack = 64;  // pixels after a plane that kernels of whole tiles (AMX: 16 pixels) may read or write

// Of p it reads the layers and the sizes of maps.
template <class Kernel, class Io>
class Stage {
  using E = typename Kernel::E;
  using Map = Rows<E>;

 public:
  Stage(const Conv3x3Params& p, const Io& io, const Parallel& parallel) : p_(p), io_(io), parallel_(parallel) {
  }

  void run() {
    const Conv3x3Layer& last = p_.layers[p_.layer_count - 1];
    if (p_.height * p_.width <= 9 * last.in_channels)
      by_channels();
    else
      by_rows();
  }

 private:
  struct Entered {  // left again where memory runs out, too
    Entered() {
      Kernel::enter();
    }
    ~Entered() {
      Kernel::leave();
    }
  };

  const Conv3x3Params& p_;
  const Io& io_;
  const Parallel& parallel_;

  int64_t in_blocks(int64_t layer) const {
    return in_blocks_of(p_.layers[layer]);
  }
  int64_t out_channels() const {
    return p_.layers[p_.layer_count - 1].out_channels;
  }
  int64_t pitch() const {
    return p_.width + 1;
  }
  int64_t plane(int64_t rows) const {
    return (rows * pitch() + 1 + kSlack) * kBlock;
  }

  size_t kernel_bytes() const {
    size_t most = io_.lines_bytes();
    for (int64_t l = 0; l < p_.layer_count; ++l) {
      const size_t bytes = Kernel::scratch_bytes(p_.layers[l]);
      most = bytes > most ? bytes : most;
    }
    return (most + 4095) / 4096 * 4096;
  }

  // A layer's input on its way through a band: image rows [first, end) are there.
  struct Window {
    Map map;
    int64_t blocks;
    int64_t first;
    int64_t end;

    void forget_before(int64_t row) {
      const int64_t drop = row - first;
      if (drop <= 0) return;
      for (int64_t b = 0; b < blocks; ++b)
        std::memmove(map.pixel(b, 0, -1), map.pixel(b, drop, -1), ((end - row) * map.pitch + 1) * kBlock * sizeof(E));
      first = row;
    }
  };

  // Rows taken through the layers at once: what they need should fit the second-level cache.
  int64_t rows_at_once() const {
    int64_t blocks = blocks_of(out_channels());
    for (int64_t l = 0; l < p_.layer_count; ++l) blocks += in_blocks(l);
    const int64_t fit =
        static_cast<int64_t>(l2_bytes()) / (blocks * pitch() * kBlock * static_cast<int64_t>(sizeof(E)));
    return fit < 8 ? 8 : fit > 32 ? 32 : fit / kUnit * kUnit;
  }

  void by_rows() {
    const int64_t units = (p_.height + kUnit - 1) / kUnit, step = rows_at_once();
    parallel_(p_.maps * units, [&](int64_t begin, int64_t end) {
      const Entered entered;
      while (begin < end) {
        const int64_t n = begin / units, from = begin % units;
        const int64_t until = least(from + end - begin, units);
        band(n, kUnit * from, least(kUnit * until, p_.height), step);
        begin += until - from;
      }
    });
  }

  // Rows [top, bottom) of map n, `step` at a time.
  void band(int64_t n, int64_t top, int64_t bottom, int64_t step) {
    const int64_t count = p_.layer_count;
    Window windows[kMaxConv3x3Layers];
    Map out;
    void* kernel_scratch = lay_out(top, step, windows, out);
    for (int64_t y = top; y < bottom; y += step) {
      const int64_t rows = least(bottom - y, step);
      int64_t until[kMaxConv3x3Layers];  // how far each layer's input must reach
      until[count - 1] = least(y + rows, p_.height) + 1;
      for (int64_t l = count - 1; l > 0; --l) until[l - 1] = made_until(l, until[l]) + 1;
      for (int64_t l = 0; l < count; ++l) {
        // a band's first rows may lie above what this layer begins to need: keep what is still to come
        windows[l].forget_before(least((l + 1 < count ? windows[l + 1].end : y) - 1, windows[l].end));
        extend(n, l, windows, until[l], kernel_scratch);
      }
      const Window& w = windows[count - 1];
      Kernel::rows({p_.layers[count - 1], w.map, y - 1 - w.first, out, 0, rows, 0, blocks_of(out_channels())},
                   kernel_scratch);
      io_.finish(n, y, rows, out, 0);
    }
  }

  // How far layer l - 1 computes layer l's input when it is wanted up to `until`.
  int64_t made_until(int64_t l, int64_t until) const {
    const int64_t unit = Kernel::row_unit(p_.layers[l - 1]);
    return least((until + unit - 1) / unit * unit, p_.height);
  }

  // Cuts a thread's scratch into the windows of a band that begins at row `top`, the rows of its result, and what the
  // kernel works in, which is returned.
  void* lay_out(int64_t top, int64_t step, Window* windows, Map& out) const {
    const int64_t count = p_.layer_count, blocks = blocks_of(out_channels());
    const auto rows_of = [&](int64_t l) { return step + 2 * (kUnit + 1) * (count - l); };  // halos, rounded up to units
    const size_t kernel = kernel_bytes();
    size_t bytes = kernel + blocks * plane(step) * sizeof(E);
    for (int64_t l = 0; l < count; ++l) bytes += in_blocks(l) * plane(rows_of(l)) * sizeof(E);
    char* memory = static_cast<char*>(scratch(Scratch::worker, bytes));
    E* next = reinterpret_cast<E*>(memory + kernel);
    int64_t first = top - 1;
    for (int64_t l = count - 1; l >= 0; --l) {
      if (l + 1 < count) first = windows[l + 1].first - 1;
      const int64_t unit = l > 0 ? Kernel::row_unit(p_.layers[l - 1]) : 1;
      first = top == 0 || first < 0 ? -1 : first / unit * unit;
      windows[l] = {{next, plane(rows_of(l)), pitch()}, in_blocks(l), first, first};
      next += in_blocks(l) * plane(rows_of(l));
    }
    out = {next, plane(step), pitch()};
    return memory;
  }

  // Makes rows up to `until` of layer l's input: from the caller's map, or by the layer before. Rows -1 and H are
  // zeros.
  void extend(int64_t n, int64_t l, Window* windows, int64_t until, void* kernel_scratch) {
    Window& w = windows[l];
    if (w.end == -1) w.map.zero(w.blocks, -1 - w.first), w.end = 0;
    const int64_t last = l > 0 ? made_until(l, until) : least(until, p_.height);
    if (last > w.end) {
      if (l == 0) {
        for (int64_t y = w.end; y < last; ++y) io_.load(n, y, w.map, y - w.first, 0, w.blocks, kernel_scratch);
      } else {
        const Window& from = windows[l - 1];
        Kernel::rows(
            {p_.layers[l - 1], from.map, w.end - 1 - from.first, w.map, w.end - w.first, last - w.end, 0, w.blocks},
            kernel_scratch);
      }
      w.end = last;
    }
    if (w.end == p_.height && until > p_.height) w.map.zero(w.blocks, p_.height - w.first), w.end = p_.height + 1;
  }

  void by_channels() {
    int64_t most = blocks_of(out_channels());
    for (int64_t l = 0; l < p_.layer_count; ++l) most = in_blocks(l) > most ? in_blocks(l) : most;
    const int64_t rows = p_.height + 2, map_elements = most * plane(rows);
    const int64_t fit = (int64_t{8} << 20) / (2 * map_elements * static_cast<int64_t>(sizeof(E)));
    const int64_t group = fit < 1 ? 1 : least(fit, p_.maps);
    E* memory = static_cast<E*>(scratch(Scratch::shared, 2 * group * map_elements * sizeof(E)));
    const size_t kernel = kernel_bytes();
    for (int64_t n = 0; n < p_.maps; n += group) {
      const int64_t now = least(p_.maps - n, group);
      E *from = memory, *to = memory + group * map_elements;
      const auto map = [&](E* side, int64_t m) { return Map{side + m * map_elements, plane(rows), pitch()}; };
      const int64_t first_blocks = in_blocks(0);
      parallel_(now * first_blocks, [&](int64_t begin, int64_t end) {
        void* lines = scratch(Scratch::worker, kernel);
        for (int64_t k = begin; k < end; ++k)
          load_plane(n + k / first_blocks, map(from, k / first_blocks), k % first_blocks, lines);
      });
      for (int64_t l = 0; l < p_.layer_count; ++l) {
        const Conv3x3Layer& layer = p_.layers[l];
        const RowsJob<E> job{layer, map(from, 0), 0, map(to, 0), 1, p_.height, 0, 0, now, map_elements, map_elements};
        parallel_(now * blocks_of(layer.out_channels), [&](int64_t begin, int64_t end) {
          const Entered entered;
          layer_tasks(begin, end, job, scratch(Scratch::worker, kernel));
        });
        E* swapped = from;
        from = to, to = swapped;
      }
      const int64_t units = (p_.height + 1) / 2;
      parallel_(now * units, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t y = k % units * 2;
          io_.finish(n + k / units, y, p_.height - y < 2 ? 1 : 2, map(from, k / units), y + 1);
        }
      });
    }
  }

  void load_plane(int64_t n, const Map& to, int64_t block, void* lines) const {
    for (int64_t y = 0; y < p_.height; ++y) io_.load(n, y, to, y + 1, block, block + 1, lines);
    zero_outside(to, block, block + 1);
  }

  void zero_outside(const Map& map, int64_t begin, int64_t end) const {
    const Map part{map.data + begin * map.plane, map.plane, map.pitch};
    part.zero(end - begin, 0);
    part.zero(end - begin, p_.height + 1);
  }

  // Tasks [begin, end) of one layer, `maps` for each block of outputs. Whole blocks are done together.
  void layer_tasks(int64_t begin, int64_t end, RowsJob<E> job, void* kernel_scratch) const {
    const int64_t maps = job.maps;
    E *const in = job.in.data, *const out = job.out.data;
    while (begin < end) {
      const int64_t first = begin % maps, left = end - begin;
      const int64_t whole = first == 0 ? left / maps : 0;
      job.block_begin = begin / maps;
      job.block_end = job.block_begin + (whole ? whole : 1);
      job.maps = whole ? maps : least(left, maps - first);
      job.in.data = in + first * job.in_map;
      job.out.data = out + first * job.out_map;
      Kernel::rows(job, kernel_scratch);
      for (int64_t m = 0; m < job.maps; ++m) zero_outside(job.out_of(m), job.block_begin, job.block_end);
      begin += whole ? whole * maps : job.maps;
    }
  }
};

// The ways in and out of the inference ops; X is what the caller's maps hold.
template <class E, class X>
struct InferenceIo {
  const Conv3x3Params& p;

  size_t lines_bytes() const {
    return one_tap(p.layers[0]) ? 3 * ((p.width + 2) * p.layers[0].in_channels + 16) * sizeof(E) : 0;
  }

  void load(int64_t n, int64_t y, const Rows<E>& to, int64_t row, int64_t block_begin, int64_t block_end,
            void* lines) const {
    if (one_tap(p.layers[0]))
      load_kernel_row<E, X>(p, n, y, to, row, static_cast<E*>(lines));
    else
      load_row<E, X>(p, n, y, to, row, block_begin, block_end);
  }

  void finish(int64_t n, int64_t y, int64_t count, const Rows<E>& from, int64_t row) const {
    const int64_t channels = p.layers[p.layer_count - 1].out_channels;
    if (p.y_switches)
      for (int64_t k = 0; k < count; k += 2) pool_rows<E, X>(p, n, y + k, from, row + k, channels);
    else if (p.score)
      for (int64_t k = 0; k < count; ++k) score_row<E>(p, n, y + k, from, row + k, channels);
    else
      for (int64_t k = 0; k < count; ++k) store_row<E, X>(p, n, y + k, from, row + k, channels);
  }
};

template <class Kernel>
void run_stage(const Conv3x3Params& p, const Parallel& parallel) {
  using E = typename Kernel::E;
  if (p.dtype == Dtype::bfloat16)
    Stage<Kernel, InferenceIo<E, BF16>>(p, {p}, parallel).run();
  else
    Stage<Kernel, InferenceIo<E, float>>(p, {p}, parallel).run();
}

}  // namespace
}  // namespace ddn::cpu
