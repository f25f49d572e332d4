// ddn_fast._C: importing it registers torch.ops.ddn_fast.* (ops_*.cpp); its own functions tell what was built and what
// this machine can run.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/features.h"
#include "cpu/isa.h"
#include "kernels.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = DDN_VERSION;
  info["compiler"] = DDN_COMPILER;
  info["torch"] = DDN_TORCH_VERSION;
  info["cuda"] = DDN_CUDA_VERSION;
  info["cuda_archs"] = py::str(DDN_CUDA_ARCHS).attr("split")(",");
  if (std::string(DDN_CUDA_ARCHS).empty()) info["cuda_archs"] = py::list();
  return info;
}

py::dict cpu_features() {
  const ddn::cpu::Features found = ddn::cpu::features();
  py::dict features;
  features["avx2"] = found.avx2;
  features["fma"] = found.fma;
  features["avx_vnni"] = found.avx_vnni;
  features["bmi2"] = found.bmi2;
  features["avx512f"] = found.avx512f;
  features["avx512bw"] = found.avx512bw;
  features["avx512dq"] = found.avx512dq;
  features["avx512vl"] = found.avx512vl;
  features["avx512_vnni"] = found.avx512_vnni;
  features["avx512_bf16"] = found.avx512_bf16;
  features["amx_bf16"] = found.amx_bf16;
  features["amx_permission"] = found.amx_permission;
  return features;
}

const char* cuda_isa() {
#ifdef DDN_WITH_CUDA
  return ddn::cuda::isa_name();
#else
  return nullptr;
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info,
        "What was built: version, compiler, torch (at build time), cuda (nvcc's version, or ''), cuda_archs as CMake "
        "writes them ('90a-real', '80-virtual').");
  m.def("cpu_features", &cpu_features,
        "Which instruction sets this CPU and its operating system offer; amx_bf16: would be granted on request, "
        "amx_permission: this process already has it.");
  m.def(
      "cpu_isa", [] { return ddn::cpu::name(ddn::cpu::isa()); },
      "The instruction set that kernels use here and now: plain, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16 "
      "or amx_bf16; the machine's best, but not above the environment variable DDN_MAX_CPU_ISA.");
  m.def(
      "cpu_isas",
      [] {
        py::list names;
        for (int i = 0; i < ddn::cpu::kIsas; ++i)
          if (const auto isa = static_cast<ddn::cpu::Isa>(i); ddn::cpu::has(isa)) names.append(ddn::cpu::name(isa));
        return names;
      },
      "Those of them this machine has, worst first.");
  m.def(
      "cuda_isa", &cuda_isa,
      "The matrix instructions that the current CUDA device's convolutions use here and now: mma, a warp's, or wgmma, "
      "a warpgroup's, where sm_90a was built and the device has it; not above the environment variable "
      "DDN_MAX_CUDA_ISA. None without a device or CUDA kernels.");
}
