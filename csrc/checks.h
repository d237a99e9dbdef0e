// Argument checks shared by all ops. They run once, at the boundary: kernels check nothing.
// Every message names the argument and shows the value that was given.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace cpfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// STD_TORCH_CHECK would append the source file and line to what is the caller's mistake.
template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "cpfast::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename... Parts>
void check(bool condition, const char* op, const Parts&... parts) {
  if (!condition) fail(op, parts...);
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Short: return "int16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return "an unsupported dtype";
  }
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
      dtype == ScalarType::BFloat16;
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
      (a.is_cpu() || a.get_device_index() == b.get_device_index());
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

// [n] of the given dtype, contiguous, on the device of `like`.
inline void check_vector(const char* op, const char* name, const Tensor& tensor, int64_t n,
                         ScalarType dtype, const Tensor& like) {
  check(tensor.dim() == 1 && tensor.size(0) == n, op, name, ": expected shape [", n, "], got ",
        shape_of(tensor));
  check(tensor.scalar_type() == dtype, op, name, ": expected dtype ", dtype_name(dtype), ", got ",
        dtype_name(tensor.scalar_type()));
  check(same_device(tensor, like), op, name, ": expected device ", device_of(like), ", got ",
        device_of(tensor));
  check(n == 0 || tensor.stride(0) == 1 || n == 1, op, name,
        ": expected a contiguous tensor, got stride ", tensor.stride(0));
}

// Two contiguous tensors, of which one is written: is there a byte that both have?
inline void check_apart(const char* op, const char* name, const Tensor& tensor,
                        const char* written_name, const Tensor& written) {
  if (tensor.numel() == 0 || written.numel() == 0) return;
  const auto begin = [](const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); };
  const auto end = [&](const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    return begin(t) + (last + 1) * t.element_size();
  };
  check(end(tensor) <= begin(written) || end(written) <= begin(tensor), op, name,
        ": shares memory with ", written_name, ", which is written; give a copy");
}

}  // namespace cpfast
