# The CUDA kernels, as a static library inside _native: included where nvcc is found. No NVIDIA library but cudart, and
# that one linked statically, so that the module also loads on a machine without a driver.
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# Machine code for A100 (and 8.x), H100 and H200, B200 (and 10.x), RTX 50 (and 12.x). The PTX is that of the oldest, not
# of the newest: a driver compiles PTX for the architecture it names and later ones. compute_80 therefore serves every
# GPU that no machine code here fits, 11.0 as well as a 13.x to come; compute_120 would leave 11.0 with nothing. No
# kernel here asks for more than 8.0.
set(RL_THINK_CUDA_ARCHITECTURES 80-real 90a-real)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND RL_THINK_CUDA_ARCHITECTURES 100-real 120-real)
else()
  message(STATUS "rl_think_ext: nvcc ${CMAKE_CUDA_COMPILER_VERSION} knows no Blackwell: it will run the PTX")
endif()
list(APPEND RL_THINK_CUDA_ARCHITECTURES 80-virtual)

add_library(rl_think_cuda STATIC ${SOURCE}/cuda/rows.cu ${SOURCE}/cuda/gradient.cu ${SOURCE}/cuda/fold.cu)
set_target_properties(
  rl_think_cuda
  PROPERTIES CUDA_ARCHITECTURES "${RL_THINK_CUDA_ARCHITECTURES}"
             CUDA_RUNTIME_LIBRARY Static
             CUDA_STANDARD 17
             CUDA_STANDARD_REQUIRED ON
             CUDA_VISIBILITY_PRESET hidden
             POSITION_INDEPENDENT_CODE ON
)
target_compile_options(
  rl_think_cuda PRIVATE -O3 -Xcompiler=-Wall,-Wextra,-ffunction-sections,-fdata-sections
                        "$<$<BOOL:${RL_THINK_WERROR}>:-Werror=all-warnings>"
)

target_sources(_native PRIVATE ${SOURCE}/cuda/bind.cpp)
target_compile_definitions(_native PRIVATE RL_THINK_CUDA)
target_link_libraries(_native PRIVATE rl_think_cuda CUDA::cudart_static)
# nanobind strips the module in a Release build; this drops what of cudart and the kernels nobody calls.
target_link_options(_native PRIVATE -Wl,--gc-sections -Wl,--exclude-libs,ALL)
set_target_properties(_native PROPERTIES LINKER_LANGUAGE CXX)
