// What this CPU, under this operating system, can run.
#pragma once

namespace ddn::cpu {

struct Features {
  bool avx2 = false;
  bool fma = false;
  bool avx_vnni = false;
  bool bmi2 = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool amx_bf16 = false;        // the CPU has it and the kernel grants it on request
  bool amx_permission = false;  // this process has already been granted it
};

Features features();

// Asks the Linux kernel to let this process, its present and future threads, use AMX tiles. False where it will not.
bool request_amx();

}  // namespace ddn::cpu
