// What the GPU probe asks the hardware (gpu_probe/assumptions.h), asked of the host emulation: the two must agree.
#define DDN_EMU
#include "gpu_probe/assumptions.h"

int main() {
  for (unsigned seed = 1; seed <= 3; ++seed) {
    ddn::emu::options.seed = seed, ddn::emu::options.eager_copies = seed == 3;
    ddn::emu::options.capability = 90;
    for (const ddn::probe::Assumption& one : ddn::probe::assumptions())
      if (const std::string rule = one.rule(); rule != ddn::probe::rules()[0].name) {
        std::fprintf(stderr, "%s: %s\n", one.name, rule.c_str());
        return 1;
      }
  }
  std::puts("ok");
}
