// What the CPU and the CUDA kernels are both written with.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#ifdef __CUDACC__
#define CPFAST_HOST_DEVICE __host__ __device__
#else
#define CPFAST_HOST_DEVICE
#endif

namespace cpfast {

// run(T{}) for the element type T of a floating dtype, which has been checked to be one.
template <typename Run>
auto for_floating(torch::headeronly::ScalarType dtype, const Run& run) {
  switch (dtype) {
    case torch::headeronly::ScalarType::Double: return run(double{});
    case torch::headeronly::ScalarType::Half: return run(c10::Half{});
    case torch::headeronly::ScalarType::BFloat16: return run(c10::BFloat16{});
    default: return run(float{});
  }
}

}  // namespace cpfast
