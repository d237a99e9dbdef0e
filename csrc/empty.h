// New tensors, without a call of the dispatcher: an op of 128 rows has three, and a call each was a
// third of its time.
#pragma once

#include "checks.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <initializer_list>

namespace cpfast {

// Uninitialised and contiguous, on the device of `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  int64_t strides[4], stride = 1;
  const auto dims = static_cast<int64_t>(shape.size());
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= shape.begin()[i] > 0 ? shape.begin()[i] : 1;
  }
  const int32_t type = dtype == ScalarType::Double ? aoti_torch_dtype_float64()
      : dtype == ScalarType::Float                 ? aoti_torch_dtype_float32()
      : dtype == ScalarType::Half                  ? aoti_torch_dtype_float16()
      : dtype == ScalarType::BFloat16              ? aoti_torch_dtype_bfloat16()
                                                   : aoti_torch_dtype_uint8();
  const int32_t device =
      like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, shape.begin(), strides, type, device,
                                                  like.is_cuda() ? like.get_device_index() : 0,
                                                  &made));
  return Tensor(made);
}

}  // namespace cpfast
