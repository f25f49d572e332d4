// Runs the CUDA convolution's own source, launches and all, on the host (csrc/emu) against plain loops. Exits non-zero
// on the first difference. Built with -fsanitize=address,undefined.
// With the argument "contract", hands the kernel an image_of_pass out of range, which must end it.
#define DDN_EMU
#include "cuda/conv3x3.cu"
#include "cuda/conv3x3_bfloat16.cu"
#include "cuda/conv3x3_float16.cu"
#include "cuda/isa.cu"

#include "cuda_conv3x3_case.h"

namespace {

// Notes what the kernel of the last layer will be, and runs the case.
void run(const Case& it) {
  const Shape& s = it.s;
  const bool pooled = it.unpool && s.channels.size() == 2;
  const int in = s.channels[s.channels.size() - 2], taps = 9 * in <= 32 ? 1 : 9;
  const Conv3x3Plan plan = plan_conv3x3(s.maps, s.height, s.width, s.channels.back(), taps == 1 ? 1 : (in + 31) / 32,
                                        taps, emu::options.multiprocessors);
  const char* const kinds[] = {"large", "narrow", "small"};
  const char* const ends[] = {" map", " pooled", " score"};
  covered.insert(std::string(kinds[static_cast<int>(plan.kind)]) + (taps == 1 ? " image"
                                                                    : pooled  ? " unpool"
                                                                              : " plain"));
  covered.insert(std::string(plan.slices > 1 ? "slices" : "whole") + ends[static_cast<int>(it.end)]);
  covered.insert(std::string(kinds[static_cast<int>(plan.kind)]) + ends[static_cast<int>(it.end)]);
  covered.insert(it.dtype == Dtype::bfloat16 ? "bfloat16" : "float16");
  test(it);
}

// Plans for the network's own shapes, which are too large to be run here.
void test_plans() {
  const auto plan = [](const PlanWanted& w) { return plan_conv3x3(w.maps, w.side, w.side, w.out, w.blocks, 9, 132); };
  check_plan(plan, {32, 320, 64, 2, 1, 1}), check_plan(plan, {32, 160, 128, 4, 1, 1});
  check_plan(plan, {32, 80, 256, 8, 1, 1}), check_plan(plan, {32, 40, 512, 16, 1, 1});
  check_plan(plan, {32, 20, 512, 16, 0.83, 1}), check_plan(plan, {1, 320, 64, 2, 1, 1});
  check_plan(plan, {1, 160, 128, 4, 1, 1}), check_plan(plan, {1, 80, 256, 8, 0.99, 0.75});
  check_plan(plan, {1, 40, 512, 16, 0.83, 0.75}), check_plan(plan, {1, 20, 512, 16, 0.83, 0.75});
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "contract") {
    break_the_contract();
    return 0;
  }
  test_plans();
  const End ends[] = {End::map, End::pooled, End::score};
  const Shape shapes[] = {{2, 8, 20, {64, 128}}, {2, 4, 20, {96, 128}}, {1, 12, 10, {64, 33}},
                          {3, 4, 4, {40, 33}},   {2, 6, 26, {36, 20}},  {5, 2, 2, {70, 7}}};
  unsigned seed = 0;
  for (const Shape& s : shapes)
    for (const End end : ends)
      for (const bool unpool : {false, true}) {
        emu::options = {++seed, seed % 2 == 0, seed % 3 ? 1 : 64};
        run({s, unpool, end, seed % 5 ? Dtype::bfloat16 : Dtype::float16});
      }
  for (const End end : ends) {
    emu::options = {++seed, seed % 2 == 0, 1};
    run({{2, 6, 14, {3, 20}}, false, end});           // the first layer
    run({{1, 12, 24, {3, 16, 40, 36}}, false, end});  // three layers, maps between them
    run({{2, 4, 6, {64, 36, 20}}, true, end, Dtype::float16});
    emu::options.multiprocessors = 132;
    run({{1, 4, 20, {160, 128}}, true, end});  // in slices
    run({{1, 8, 20, {96, 128}}, false, end});
  }
  emu::options.multiprocessors = 1;
  run({{1, 4, 6, {32, 136}}, false, End::score});  // more outputs than a tile has, scored
  run({{1, 7, 5, {8, 9, 8}}, false, End::map});    // odd sides
  run({{2, 5, 3, {3, 8}}, false, End::score});
  run({{0, 4, 4, {32, 32}}, false, End::map});
  if (missing({"large plain",  "large unpool", "narrow plain", "narrow unpool", "small plain", "small unpool",
               "narrow image", "large map",    "large pooled", "large score",   "narrow map",  "narrow pooled",
               "narrow score", "small map",    "small pooled", "small score",   "slices map",  "slices pooled",
               "slices score", "bfloat16",     "float16"}))
    return 1;
  std::puts("ok");
}
