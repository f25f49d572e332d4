// The first minutes on a Hopper GPU: which assumptions of the convolution for sm_90a hold, what products of warpgroups
// reach, every layer of the network by every kernel and tile against float32, with times. Needs nvcc alone. From the
// repository's root:
//
//   nvcc -t0 -std=c++17 -O3 -Icsrc -DDDN_HAVE_WGMMA -gencode=arch=compute_90a,code=sm_90a -o gpu_probe
//     tests/native/gpu_probe/gpu_probe.cu csrc/cuda/conv3x3*.cu csrc/cuda/isa.cu &&
//     timeout 300 ./gpu_probe --json gpu_probe.json [assumptions] [rates] [layers]
//
// (one line; without a part's name, all three). Exit status: 0, or 1 where an assumption that is relied on fails or a
// layer is wrong, 2 where CUDA fails, 3 where a kernel hangs: after 60 seconds in one part it says in which.
#include <unistd.h>

#include <csignal>
#include <memory>
#include <type_traits>

#include "assumptions.h"
#include "cuda/conv3x3_wgmma.cuh"
#include "layers.cuh"
#include "rates.cuh"

namespace {

using namespace ddn;
using namespace ddn::probe;

const char* part = "";

void give_up(int) {
  constexpr char kText[] = "hangs in: ";
  (void)!write(2, kText, sizeof kText - 1);
  (void)!write(2, part, std::strlen(part));
  (void)!write(2, "\n", 1);
  _exit(3);
}

// That two blocks share a multiprocessor, as the kernel's header says.
int check_occupancy() {
  using Tile = Conv3x3WgmmaTile<BFloat16, Conv3x3TileKind::wide>;
  const auto kernel = conv3x3_wgmma_kernel<Tile>;
  int blocks = 0;
  require_success(allow_shared_memory(kernel, Tile::kBytes), "shared memory");
  require_success(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, Tile::kThreads, Tile::kBytes),
                  "occupancy");
  std::printf("%-10s%-62s %d\n", blocks == 2 ? "holds" : "FAILS", "blocks of the widest tile a multiprocessor: 2",
              blocks);
  return blocks != 2;
}

void write_json(const char* path, const cudaDeviceProp& device, int failures, const std::vector<Rates>& rates,
                const std::vector<LayerResult>& layers) {
  const std::string beside = std::string(path) + ".part";
  FILE* const file = std::fopen(beside.c_str(), "w");
  if (!file) {
    std::fprintf(stderr, "%s: cannot be written\n", beside.c_str());
    std::exit(2);
  }
  std::fprintf(file, "{\"gpu\": \"%s\", \"failed_assumptions\": %d,\n \"rates\": [", device.name, failures);
  for (const Rates& r : rates)
    std::fprintf(file, "%s\n  {\"tile\": \"%s\", \"aligned\": [%.1f, %.1f], \"taps\": [%.1f, %.1f]}",
                 &r == rates.data() ? "" : ",", r.tile, r.aligned[0], r.aligned[1], r.taps[0], r.taps[1]);
  std::fprintf(file, "],\n \"layers\": [");
  for (const LayerResult& r : layers)
    std::fprintf(file,
                 "%s\n  {\"layer\": \"%s\", \"dtype\": \"%s\", \"maps\": %d, \"kind\": \"%s\", \"slices\": %d, "
                 "\"planned\": %s, \"error\": %.3e, \"microseconds\": %.3f, \"teraflops\": %.1f, \"fault\": \"%s\"}",
                 &r == layers.data() ? "" : ",", r.layer->name, r.dtype, r.maps, r.kind, r.slices,
                 r.chosen ? "true" : "false", std::isfinite(r.error) ? r.error : -1.0, r.seconds * 1e6, r.teraflops,
                 r.fault.c_str());
  std::fprintf(file, "]}\n");
  if (std::fclose(file) != 0 || std::rename(beside.c_str(), path) != 0) std::exit(2);
}

}  // namespace

void ddn::probe::begin(const char* name) {
  part = name;
  alarm(60);
}

void ddn::probe::report(const LayerResult& r) {
  std::printf("%-10s %-8s maps %2d %c %-13s slices %2d %9.1f us %6.0f TFLOP/s", r.layer->name, r.dtype, r.maps,
              r.chosen ? '*' : ' ', r.kind, r.slices, r.seconds * 1e6, r.teraflops);
  if (r.error >= 0 || !r.fault.empty())
    std::printf("  error %.1e %s%s", r.error, r.fault.empty() ? "" : "FAULT: ", r.fault.c_str());
  std::printf("\n");
  std::fflush(stdout);
}

int main(int count, char** arguments) {
  const char* json = nullptr;
  std::vector<std::string> parts;
  for (int k = 1; k < count; ++k) {
    const std::string argument = arguments[k];
    if (argument == "--json" && k + 1 < count) {
      json = arguments[++k];
    } else if (argument == "assumptions" || argument == "rates" || argument == "layers") {
      parts.push_back(argument);
    } else {
      std::fprintf(stderr, "wanted [--json FILE] [assumptions] [rates] [layers], got %s\n", arguments[k]);
      return 2;
    }
  }
  const auto wanted = [&](const char* name) {
    return parts.empty() || std::find(parts.begin(), parts.end(), name) != parts.end();
  };
  cudaDeviceProp device{};
  require_success(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("%s, compute capability %d.%d, %d multiprocessors\n", device.name, device.major, device.minor,
              device.multiProcessorCount);
  if (device.major != 9 || device.minor != 0) {
    std::fprintf(stderr, "wanted compute capability 9.0, got %d.%d\n", device.major, device.minor);
    return 2;
  }
  std::signal(SIGALRM, give_up);
  int failures = 0, faults = 0;
  std::vector<Rates> rates;
  std::vector<LayerResult> layers;
  if (wanted("assumptions")) begin("assumptions"), failures = check_assumptions() + check_occupancy();
  if (wanted("rates")) begin("rates"), rates = measure_rates();
  if (wanted("layers")) begin("layers"), layers = measure_layers();
  for (const LayerResult& r : layers) faults += !r.fault.empty();
  if (json) write_json(json, device, failures, rates, layers);
  std::printf("--- %d assumptions that are relied on fail, %d results are wrong\n", failures, faults);
  return failures || faults;
}
