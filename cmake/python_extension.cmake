# ddn_fast/_C: ops_*.cpp (torch's stable ABI) and module.cpp (pybind11) around the kernel libraries.
# The binary needs no CUDA in torch: only libtorch_cpu's symbols and one weak one, the current CUDA stream.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.util as u, os, pybind11; from importlib.metadata import version; \
print(pybind11.get_cmake_dir(), os.path.dirname(u.find_spec('torch').origin), version('torch'), sep=';', end='')"
  OUTPUT_VARIABLE found COMMAND_ERROR_IS_FATAL ANY)
list(GET found 0 pybind11_DIR)
list(GET found 1 torch_dir)
list(GET found 2 torch_version)
if(torch_version VERSION_LESS 2.11)
  message(FATAL_ERROR "ddn-fast needs torch >= 2.11 to build, got ${torch_version} in ${torch_dir}")
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)

# A library of its own: torch ships a pybind11 that module.cpp must not find.
add_library(ddn_ops OBJECT csrc/torch/ops_conv3x3.cpp csrc/torch/ops_dense.cpp
                           csrc/torch/ops_input.cpp csrc/torch/ops_merge.cpp
                           csrc/torch/ops_pooling.cpp csrc/torch/ops_training.cpp)
target_include_directories(ddn_ops SYSTEM PRIVATE ${torch_dir}/include)
target_compile_definitions(ddn_ops PRIVATE TORCH_TARGET_VERSION=0x020b000000000000 TORCH_STABLE_ONLY)
target_compile_options(ddn_ops PRIVATE -Wall -Wextra)

string(REPLACE ";" "," archs_text "${DDN_CUDA_ARCHS}")
pybind11_add_module(_C NO_EXTRAS csrc/torch/module.cpp)
target_compile_definitions(
  _C PRIVATE DDN_VERSION="${DDN_VERSION}" DDN_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
             DDN_TORCH_VERSION="${torch_version}" DDN_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}"
             DDN_CUDA_ARCHS="${archs_text}")
target_compile_definitions(ddn_ops PRIVATE DDN_CUDA_ARCHS="${archs_text}")
target_link_libraries(ddn_ops PRIVATE ddn_cpu)
target_link_libraries(_C PRIVATE ddn_ops ddn_cpu)
if(DDN_NVCC)
  target_link_libraries(ddn_ops PRIVATE ddn_cuda)
  target_link_libraries(_C PRIVATE ddn_cuda)
endif()
# libtorch is named although no symbol needs it directly: through it a CUDA torch's weak stream symbol resolves.
target_link_libraries(_C PRIVATE -Wl,--no-as-needed ${torch_dir}/lib/libtorch.so -Wl,--as-needed
                                 ${torch_dir}/lib/libtorch_cpu.so)
set_target_properties(_C PROPERTIES SKIP_BUILD_RPATH ON)  # `import torch` has loaded both by then
