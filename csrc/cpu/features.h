// What this CPU, under this operating system, can run.
#pragma once

namespace ddn::cpu {

struct Features {
  bool avx2 = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512_bf16 = false;
  bool amx_bf16 = false;        // the CPU has it and the kernel grants it on request
  bool amx_permission = false;  // this process has already been granted it
};

Features features();

}  // namespace ddn::cpu
