#include "cuda/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cuda/dev.cuh"
#include "kernels.h"

namespace ddn::cuda {
namespace {

#ifdef DDN_HAVE_WGMMA
constexpr bool kWgmmaBuilt = true;
#else
constexpr bool kWgmmaBuilt = false;
#endif

Isa limit() {
  const char* const wanted = std::getenv("DDN_MAX_CUDA_ISA");
  const std::string name = wanted ? wanted : "";
  if (name == "mma") return Isa::mma;
  if (name.empty() || name == "wgmma") return Isa::wgmma;
  throw std::runtime_error("DDN_MAX_CUDA_ISA must be mma or wgmma, got " + name);
}

}  // namespace

int isa(Isa& found) {
  int major = 0, minor = 0;
  const Isa most = limit();
  if (const cudaError_t error = compute_capability(major, minor)) return error;
  found = kWgmmaBuilt && major == 9 && minor == 0 ? most : Isa::mma;
  return cudaSuccess;
}

const char* isa_name() {
  Isa found{};
  if (isa(found)) return nullptr;
  return found == Isa::wgmma ? "wgmma" : "mma";
}

}  // namespace ddn::cuda
