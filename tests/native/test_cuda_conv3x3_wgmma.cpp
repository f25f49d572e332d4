// Runs the convolution's own source for sm_90a, launches and all, on the host (csrc/emu) against plain loops, as
// test_cuda_conv3x3.cpp does the portable one's. With the argument "contract", hands the kernel an image_of_pass out of
// range, which must end it.
#define DDN_EMU
#define DDN_HAVE_WGMMA
#include "cuda/conv3x3.cu"
#include "cuda/conv3x3_bfloat16.cu"
#include "cuda/conv3x3_float16.cu"
#include "cuda/conv3x3_wgmma_bfloat16.cu"
#include "cuda/conv3x3_wgmma_float16.cu"
#include "cuda/isa.cu"

#include "cuda_conv3x3_case.h"
#include "gpu_probe/layers.cuh"

void ddn::probe::begin(const char*) {
}
void ddn::probe::report(const LayerResult&) {
}

namespace {

// The GPU probe's own oracle, comparison and launches agree with the kernels, so that what it reports is the GPU's
// doing.
void test_probe() {
  const probe::Layer layers[] = {{"map", 20, 64, 64, false, probe::End::map, 1, false},
                                 {"pooled", 12, 32, 96, true, probe::End::pooled, 1, false},
                                 {"score", 8, 64, 32, false, probe::End::score, 1, true}};
  std::vector<probe::LayerResult> results;
  for (const probe::Layer& layer : layers) {
    probe::try_layer<BFloat16>(layer, "bfloat16", 2, true, results);
    probe::try_layer<Float16>(layer, "float16", 1, true, results);
  }
  for (const probe::LayerResult& result : results)
    if (!result.fault.empty()) differs(result.fault.c_str(), {}, 0, static_cast<float>(result.error), 0);
}

// Notes what the kernel of the last layer will be, and runs the case: with products of warpgroups, or with none of
// them.
void run(const Case& it, bool by_wgmma = true) {
  const Shape& s = it.s;
  const int in = s.channels[s.channels.size() - 2];
  const Conv3x3Plan plan =
      plan_conv3x3_wgmma(s.maps, s.height, s.width, s.channels.back(), (in + 31) / 32, emu::options.multiprocessors);
  const char* const kinds[] = {"", "", "", "tall", "wide", "compact"};
  const char* const ends[] = {" map", " pooled", " score"};
  const std::string kind = kinds[static_cast<int>(plan.kind)], end = ends[static_cast<int>(it.end)];
  if (by_wgmma) {
    covered.insert(kind + (it.unpool && s.channels.size() == 2 ? " unpool" : " plain"));
    covered.insert(kind + end);
    covered.insert((plan.slices > 1 ? "slices" : "whole") + end);
    covered.insert(it.dtype == Dtype::bfloat16 ? "bfloat16" : "float16");
  }
  emu::options.products = 0;
  test(it);
  if ((emu::options.products > 0) != by_wgmma) differs("the kernel", s, 0, !by_wgmma, by_wgmma);
}

// Plans for the network's own shapes, which are too large to be run here.
void test_plans() {
  const auto plan = [](const PlanWanted& w) {
    return plan_conv3x3_wgmma(w.maps, w.side, w.side, w.out, w.blocks, 132);
  };
  check_plan(plan, {32, 320, 64, 2, 1, 1}), check_plan(plan, {32, 160, 128, 4, 1, 1});
  check_plan(plan, {32, 80, 256, 8, 1, 1}), check_plan(plan, {32, 40, 512, 16, 1, 1});
  check_plan(plan, {32, 20, 512, 16, 0.83, 1}), check_plan(plan, {1, 320, 64, 2, 1, 1});
  check_plan(plan, {1, 160, 128, 4, 0.95, 1}), check_plan(plan, {1, 80, 256, 8, 0.83, 0.9});
  check_plan(plan, {1, 40, 512, 16, 0.83, 0.9}), check_plan(plan, {1, 20, 512, 16, 0.83, 0.45});
}

// With the variable at "mma".
void test_name_of_isa() {
  const bool limited = cuda::isa_name() == std::string("mma");
  setenv("DDN_MAX_CUDA_ISA", "wgmma", 1);
  const bool best = cuda::isa_name() == std::string("wgmma");
  emu::options.capability = 100;
  const bool portable = cuda::isa_name() == std::string("mma");
  setenv("DDN_MAX_CUDA_ISA", "sse9", 1);
  std::string message;
  try {
    cuda::isa_name();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  if (limited && best && portable && message == "DDN_MAX_CUDA_ISA must be mma or wgmma, got sse9") return;
  std::fprintf(stderr, "isa: limited %d, best %d, portable %d, message: %s\n", limited, best, portable,
               message.c_str());
  std::exit(1);
}

void set(unsigned seed, int multiprocessors) {
  emu::options.seed = seed, emu::options.eager_copies = seed % 3 == 0, emu::options.multiprocessors = multiprocessors;
}

}  // namespace

int main(int count, char** arguments) {
  emu::options.capability = 90;
  if (count > 1 && std::string(arguments[1]) == "contract") {
    break_the_contract();
    return 0;
  }
  test_plans();
  const End ends[] = {End::map, End::pooled, End::score};
  // one whole tile, and several with a rest, of each kind
  const Shape shapes[] = {{2, 20, 16, {64, 64}}, {1, 22, 18, {96, 40}}, {1, 8, 40, {64, 64}},
                          {2, 10, 48, {32, 8}},  {1, 10, 24, {64, 48}}, {1, 12, 26, {128, 64}}};
  unsigned seed = 0;
  for (const Shape& s : shapes)
    for (const End end : ends)
      for (const bool unpool : {false, true}) {
        set(++seed, 1);
        run({s, unpool, end, seed % 4 ? Dtype::bfloat16 : Dtype::float16});
      }
  for (const End end : ends) {
    set(++seed, 1);
    run({{2, 4, 6, {64, 72, 64}}, true, end});     // two layers, the second of channels that fill no block
    run({{1, 6, 6, {3, 16, 24, 8}}, false, end});  // after the first layer of an image, which is the portable one's
    set(++seed, 132);
    run({{1, 4, 8, {160, 64}}, true, end, Dtype::float16});  // in slices
    run({{1, 4, 8, {96, 32}}, false, end});
    run({{1, 4, 4, {36, 32}}, false, end}, false);  // channels that are the portable kernel's
    run({{1, 4, 4, {40, 32}}, true, end}, false);
  }
  set(1, 1);
  run({{1, 4, 6, {32, 136}}, false, End::map});          // outputs of three tiles, the last with 8
  run({{1, 4, 6, {32, 136}}, false, End::score});        // more outputs than are scored in a kernel
  run({{1, 4, 6, {32, 72}}, false, End::score}, false);  // more than a tile's
  run({{1, 7, 5, {8, 16, 8}}, false, End::map});         // odd sides
  run({{1, 5, 3, {16, 8}}, false, End::score});
  run({{0, 4, 4, {32, 32}}, false, End::map}, false);
  test_probe();
  setenv("DDN_MAX_CUDA_ISA", "mma", 1);
  run({{1, 4, 6, {32, 32}}, false, End::map}, false);
  test_name_of_isa();
  if (missing({"tall plain",    "tall unpool",    "tall map",     "tall pooled",    "tall score",
               "wide plain",    "wide unpool",    "wide map",     "wide pooled",    "wide score",
               "compact plain", "compact unpool", "compact map",  "compact pooled", "compact score",
               "slices map",    "slices pooled",  "slices score", "bfloat16",       "float16"}))
    return 1;
  std::puts("ok");
}
