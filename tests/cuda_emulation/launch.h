// Stands in for csrc/cuda/launch.h: kernels run at once, on the CPU, and outputs and scratch lie
// between guards.
#pragma once

#include "../checks.h"

#include <cuda_runtime.h>

#include <cstring>
#include <functional>
#include <optional>
#include <type_traits>
#include <vector>

namespace emulation {

void run_grid(int64_t blocks, int threads, bool together, const std::function<void()>& kernel);
void* allocate_guarded(int64_t bytes);
// Of more blocks a cooperative grid is refused.
int64_t most_together();

inline int64_t size_of(cpfast::ScalarType dtype) {
  using enum cpfast::ScalarType;
  switch (dtype) {
    case Byte: return 1;
    case Half: return 2;
    case BFloat16: return 2;
    case Float: return 4;
    case Int: return 4;
    case Double: return 8;
    case Long: return 8;
    default: cpfast::fail("new_empty", "a dtype that the emulation does not know");
  }
}

inline cpfast::Tensor new_empty(const cpfast::Tensor& like,
                                torch::headeronly::IntHeaderOnlyArrayRef shape,
                                std::optional<cpfast::ScalarType> wanted = std::nullopt) {
  const cpfast::ScalarType dtype = wanted.value_or(like.scalar_type());
  std::vector<int64_t> strides(shape.size());
  int64_t numel = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = numel;
    numel *= shape[i];
  }
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(allocate_guarded(numel * size_of(dtype)), shape, strides, cpu,
                                  dtype);
}

}  // namespace emulation

namespace cpfast {

class Launcher {
 public:
  explicit Launcher(const Tensor&) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads,
                  const Arguments&... arguments) const {
    if (blocks == 0) return;
    emulation::run_grid(blocks, threads, false, [&] { kernel(arguments...); });
  }

  template <typename... Parameters>
  bool cooperative(void (*kernel)(Parameters...), int64_t blocks, int threads,
                   const std::type_identity_t<Parameters>&... arguments) const {
    if (blocks > emulation::most_together()) {
      if (blocks > 1) return false;
      emulation::trap("a single block that is refused");
    }
    emulation::run_grid(blocks, threads, true, [&] { kernel(arguments...); });
    return true;
  }

  void zero(void* at, int64_t bytes) const { std::memset(at, 0, bytes); }

  // Few, so that a persistent block takes several turns.
  template <typename... Parameters>
  int64_t resident_blocks(void (*)(Parameters...), int) const {
    return 3;
  }
};

}  // namespace cpfast
