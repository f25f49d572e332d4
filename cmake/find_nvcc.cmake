# ddn_find_nvcc(OUT): the nvcc to use, or empty. CUDACXX names one; else PATH, CUDA_HOME, CUDA_PATH and DDN_CUDA_HOME are
# searched. What was asked for and is not there is an error.
set(DDN_CUDA_HOME /usr/local/cuda CACHE PATH "where a CUDA toolkit is looked for last")

function(ddn_find_nvcc out)
  set(${out} "" PARENT_SCOPE)
  if(NOT DDN_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "DDN_CUDA must be AUTO, ON or OFF, got '${DDN_CUDA}'")
  endif()
  if(DDN_CUDA STREQUAL OFF)
    return()
  endif()
  if(NOT "$ENV{CUDACXX}" STREQUAL "")
    find_program(DDN_NVCC_PROGRAM NAMES "$ENV{CUDACXX}" NO_CACHE)
    if(NOT DDN_NVCC_PROGRAM)
      message(FATAL_ERROR "CUDACXX must name an nvcc, got '$ENV{CUDACXX}', which is not there")
    endif()
  else()
    find_program(DDN_NVCC_PROGRAM NAMES nvcc NO_CACHE NO_DEFAULT_PATH
                 PATHS ENV PATH "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" "${DDN_CUDA_HOME}/bin")
  endif()
  if(NOT DDN_NVCC_PROGRAM AND DDN_CUDA STREQUAL ON)
    message(FATAL_ERROR "DDN_CUDA=ON, but nvcc is not on PATH, nor in CUDA_HOME, CUDA_PATH or ${DDN_CUDA_HOME}. "
                        "Install the CUDA toolkit, or set CUDACXX=/path/to/nvcc, or build without: DDN_CUDA=OFF")
  endif()
  if(DDN_NVCC_PROGRAM)
    set(${out} "${DDN_NVCC_PROGRAM}" PARENT_SCOPE)
  endif()
endfunction()
