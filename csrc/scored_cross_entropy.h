// scored_cross_entropy(input, target, weight, label_smoothing, ignore_index)
//     -> loss [N], el2n [N], margin [N], correct [N], softmax_stats [N, 2]
// scored_cross_entropy_backward(grad_loss, input, target, softmax_stats, weight,
//                               label_smoothing, ignore_index) -> grad_input [N, C]
//
// input          [N, C] logits; float32, float64, float16 or bfloat16; any row stride
// target         [N] int64, in [0, C) or ignore_index
// weight         optional [N], multiplies the loss of each sample
// loss, stats    float64 for float64 input, else float32, as are weight and grad_loss
// el2n, margin, correct   float32
//
// With p = softmax(x) and y the target:
//     loss    = weight * ((1 - smoothing) * (lse - x_y) + smoothing / C * sum_j (lse - x_j))
//     el2n    = |p - onehot(y)|_2
//     margin  = x_y - max_{j != y} x_j          (+inf where C is 1)
//     correct = 1 where y is the first of the largest logits, else 0
// Ignored rows have 0 everywhere, and no gradient. A row with NaN has NaN in loss, el2n and
// margin, and correct 0. On the CPU a target out of range is an error; on CUDA, where an error
// would cost a synchronisation, it makes its row NaN.
//
// The sums leave the target out: with m the largest logit, s1 = sum_{j != y} exp(x_j - m) and
// s2 = sum_{j != y} exp(x_j - m)^2, the loss of a confident row is log1p(s1 / exp(x_y - m)),
// which keeps its digits where 1 - p_y has none left, and so do el2n and the gradient at y,
// p_y - 1 = -s1 / Z. What backward needs is (m, s1): unlike a rounded log-sum-exp, m is exact.
// (While adding, m is the largest logit but the target's, so that the squares do not underflow.)
#pragma once

#include "checks.h"
#include "dispatch.h"

namespace cpfast::scored_cross_entropy {

inline ScalarType compute_dtype(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_arguments(const char* op, const Tensor& input, const Tensor& target,
                            const std::optional<Tensor>& weight, double label_smoothing) {
  check(input.dim() == 2, op, "input: expected logits of shape [N, C], got ", shape_of(input));
  check(input.size(1) >= 1, op, "input: expected at least one class, got shape ", shape_of(input));
  check(is_floating(input.scalar_type()), op,
        "input: expected float32, float64, float16 or bfloat16, got ",
        dtype_name(input.scalar_type()));
  check_vector(op, "target", target, input.size(0), ScalarType::Long, input);
  if (weight) check_vector(op, "weight", *weight, input.size(0), compute_dtype(input), input);
  check(label_smoothing >= 0 && label_smoothing <= 1, op,
        "label_smoothing: expected a number in [0, 1], got ", label_smoothing);
}

// Rows may be far apart, but the logits of a row lie side by side.
inline Tensor with_unit_column_stride(const Tensor& input) {
  return input.size(1) == 1 || input.stride(1) == 1 ? input : torch::stable::contiguous(input);
}

inline void check_backward_arguments(const char* op, const Tensor& grad_loss, const Tensor& input,
                                     const Tensor& softmax_stats) {
  check_vector(op, "grad_loss", grad_loss, input.size(0), compute_dtype(input), input);
  check(softmax_stats.dim() == 2 && softmax_stats.size(0) == input.size(0) &&
            softmax_stats.size(1) == 2 && softmax_stats.is_contiguous() &&
            softmax_stats.scalar_type() == compute_dtype(input) &&
            same_device(softmax_stats, input),
        op, "softmax_stats: expected the one that the forward pass returned, got shape ",
        shape_of(softmax_stats), ", dtype ", dtype_name(softmax_stats.scalar_type()), ", device ",
        device_of(softmax_stats));
}

}  // namespace cpfast::scored_cross_entropy
