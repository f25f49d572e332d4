// A stage of 3x3 convolutions: how rows, channels and threads are cut. Kernel computes rows of one layer, Io brings
// them in from the caller's maps and out to them:
//
//   struct Kernel {
//     using E = float or BF16;                              // what maps are held in between
//     static void enter(), leave();                         // around everything a thread computes
//     static size_t scratch_bytes(const Conv3x3Layer&);
//     static int64_t row_unit(const Conv3x3Layer&);         // rows it computes together, from a multiple of it on
//     static void rows(const RowsJob<E>&, void* scratch);   // in one thread
//     // Whole maps in all threads, where these have something to share; of 0 bytes where they have not. Writes to no
//     // row outside of a map.
//     static size_t together_bytes(const Conv3x3Layer&, int64_t maps, int64_t height, int64_t width);
//     static void together(const RowsJob<E>&, void* memory, const Parallel&);
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
constexpr int64_t kSlack = 64;  // pixels after a plane that kernels of whole tiles (AMX: 32 pixels) may read or write

// Of p it reads the layers and the sizes of maps.
template <class Kernel, class Io>
class Stage {
  using E = typename Kernel::E;
  using Map = Rows<E>;

 public:
  Stage(const Conv3x3Params& p, const Io& io, const Parallel& parallel) : p_(p), io_(io), parallel_(parallel) {
  }

  void run() {
    if (weights_outweigh_maps() || bands_too_thin())
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

  bool weights_outweigh_maps() const {
    return p_.height * p_.width <= 9 * p_.layers[p_.layer_count - 1].in_channels;
  }

  // Whether there are so many threads that much of a band is what its neighbours compute, too: some 5 rows for each
  // layer but the last. Layer by layer nothing is computed twice, but all goes out to memory and back: as long as the
  // products of about 128 channels take (80x80 maps of 256 channels: 1.1 to 1.3 times as long in one thread, 160x160
  // of 128: 2 times, 320x320 of 64: 2.3 times).
  bool bands_too_thin() const {
    const Conv3x3Layer& last = p_.layers[p_.layer_count - 1];
    const int64_t threads = parallel_.threads, units = p_.maps * ((p_.height + kUnit - 1) / kUnit);
    if (threads < 2 || !Kernel::together_bytes(last, 1, p_.height, p_.width)) return false;
    const int64_t band = kUnit * ((units + threads - 1) / threads) + 5 * (p_.layer_count - 1);
    return kUnit * units * (last.in_channels + 128) < band * threads * last.in_channels;
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
    const int64_t at_once = maps_at_once(most * plane(p_.height + 2));
    in_even_parts(p_.maps, at_once, [&](int64_t n, int64_t maps) { by_channels(n, maps, most); });
  }

  // As many as fit, with their results, 6 MiB a thread, or of two.
  int64_t maps_at_once(int64_t map_elements) const {
    const int64_t bytes = (int64_t{6} << 20) * (parallel_.threads < 2 ? 2 : parallel_.threads);
    const int64_t fit = bytes / (2 * map_elements * static_cast<int64_t>(sizeof(E)));
    return fit < 1 ? 1 : fit;
  }

  // Maps [n, n + maps), of up to `most` blocks. Each layer takes them from one half of the memory to the other.
  void by_channels(int64_t n, int64_t maps, int64_t most) {
    const int64_t map_elements = most * plane(p_.height + 2);
    size_t together = 0;
    for (int64_t l = 0; l < p_.layer_count; ++l) {
      const size_t bytes = Kernel::together_bytes(p_.layers[l], maps, p_.height, p_.width);
      together = bytes > together ? bytes : together;
    }
    const int64_t half = maps * map_elements;
    E* memory = static_cast<E*>(scratch(Scratch::shared, 2 * half * sizeof(E) + together));
    const auto map = [&](int64_t layer, int64_t m) {
      return Map{memory + layer % 2 * half + m * map_elements, plane(p_.height + 2), pitch()};
    };
    parallel_(maps * p_.height, [&](int64_t begin, int64_t end) {
      void* lines = scratch(Scratch::worker, io_.lines_bytes());
      for (int64_t k = begin; k < end; ++k) {
        const int64_t m = k / p_.height, y = k % p_.height;
        io_.load(n + m, y, map(0, m), y + 1, 0, in_blocks(0), lines);
        if (y == 0)
          for (int64_t side = 0; side < 2; ++side) zero_outside(map(side, m), 0, most);
      }
    });
    for (int64_t l = 0; l < p_.layer_count; ++l)
      whole_layer({p_.layers[l], map(l, 0), 0, map(l + 1, 0), 1, p_.height, 0, blocks_of(p_.layers[l].out_channels),
                   maps, map_elements, map_elements},
                  memory + 2 * half);
    const int64_t units = (p_.height + 1) / 2;
    parallel_(maps * units, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t y = k % units * 2;
        io_.finish(n + k / units, y, p_.height - y < 2 ? 1 : 2, map(p_.layer_count, k / units), y + 1);
      }
    });
  }

  void whole_layer(const RowsJob<E>& job, void* memory) {
    if (Kernel::together_bytes(job.layer, job.maps, p_.height, p_.width))
      return Kernel::together(job, memory, parallel_);
    const int64_t blocks = job.block_end;
    const size_t kernel = kernel_bytes();
    const int64_t parts = parts_of_map(job.maps * blocks);
    parallel_(job.maps * blocks * parts, [&](int64_t begin, int64_t end) {
      const Entered entered;
      void* kernel_scratch = scratch(Scratch::worker, kernel);
      if (parts == 1) return layer_tasks(begin, end, job, kernel_scratch);
      for (int64_t k = begin; k < end; ++k) part_of_map(job, k / parts, k % parts, parts, kernel_scratch);
    });
  }

  // Parts that a block of a map is cut into where there are fewer of them than threads: of whole units of rows, and
  // of more pixels than a kernel may write beyond the last.
  int64_t parts_of_map(int64_t tasks) const {
    const int64_t wanted = (parallel_.threads + tasks - 1) / tasks;
    const int64_t least_units = (kSlack + kUnit * pitch() - 1) / (kUnit * pitch());
    const int64_t most = p_.height / kUnit / least_units;
    return most < 1 ? 1 : least(wanted, most);
  }

  // Part `part` of task `task` of a layer: one map, one block of outputs.
  void part_of_map(RowsJob<E> job, int64_t task, int64_t part, int64_t parts, void* kernel_scratch) const {
    const int64_t units = p_.height / kUnit, m = task % job.maps, top = part * units / parts * kUnit;
    const int64_t bottom = part + 1 < parts ? (part + 1) * units / parts * kUnit : p_.height;
    job.block_begin = task / job.maps, job.block_end = job.block_begin + 1;
    job.in = job.in_of(m), job.out = job.out_of(m), job.maps = 1;
    job.in_row += top, job.out_row += top, job.count = bottom - top;
    Kernel::rows(job, kernel_scratch);
    if (part == 0) zero_outside(job.out, job.block_begin, job.block_end);
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
