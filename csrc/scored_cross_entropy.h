// scored_cross_entropy(input, target, weight, label_smoothing, ignore_index, reduction,
//                      Tensor(a!)? grad, Tensor(b!)? table, index, score)
//     -> loss [N] or [], scores [3, N], softmax_stats [N + 1, 2]
// scored_cross_entropy_backward(grad_loss, input, target, softmax_stats, weight,
//                               label_smoothing, ignore_index, reduction) -> grad_input, as input
// rescale_gradient(Tensor(a!) grad, factor) -> ()
//
// input          [N, C] logits, or [B, T, C] for N = B * T tokens; float32, float64, float16 or
//                bfloat16; the logits of a row lie side by side (others are copied)
// target         [N] or [B, T] int64, in [0, C) or ignore_index; an ignore_index of -2^63 promises
//                that no target is ignored, and saves CUDA from counting them
// weight         optional, as target: multiplies the loss of each row
// reduction      0: none, 1: the sum over the number of rows that are not ignored, 2: the sum
// loss, stats    float64 for float64 input, else float32, as are weight and grad_loss
// scores         float32: el2n, margin and correct, one after the other
// grad           optional, shaped as input: the gradient of the reduced loss (of the sum, where
//                there is no reduction) is written here, in the same pass over the logits, with one
//                exponential each; it may be input itself. softmax_stats is empty then
// table, index   optional: table[index] = one of the row's numbers, chosen by score (0: the loss
//                without its weight, 1: el2n, 2: margin, 3: correct), for the last of equal indices
//                alone. [M] float32, [N] or [B] int64. A sequence of tokens has the mean over
//                those that are not ignored; of ignored rows and sequences nothing is written
// factor         [] or as target: what backward got from above; where it is 1, nothing is done
//
// With p = softmax(x) and y the target:
//     loss    = weight * ((1 - smoothing) * (lse - x_y) + smoothing / C * sum_j (lse - x_j))
//     el2n    = |p - onehot(y)|_2
//     margin  = x_y - max_{j != y} x_j          (+inf where C is 1)
//     correct = 1 where y is the first of the largest logits, else 0
// Ignored rows have 0 everywhere, and no gradient. A row with NaN has NaN in loss, el2n and
// margin, and correct 0. On the CPU a target or an index out of range is an error; on CUDA, where
// an error would cost a synchronisation, such a target makes its row NaN, and such an index traps.
//
// The sums leave the target out: with m the largest logit, s1 = sum_{j != y} exp(x_j - m) and
// s2 = sum_{j != y} exp(x_j - m)^2, the loss of a confident row is log1p(s1 / exp(x_y - m)),
// which keeps its digits where 1 - p_y has none left, and so do el2n and the gradient at y,
// p_y - 1 = -s1 / Z. What backward needs is (m, s1): unlike a rounded log-sum-exp, m is exact.
// (While adding, m is the largest logit but the target's, so that the squares do not underflow.)
// Where the loss is a mean, row N of softmax_stats begins with its factor: 1 over the number of
// rows that are not ignored.
#pragma once

#include "dispatch.h"
#include "scored_loss.h"

#include <algorithm>
#include <string>
#include <utility>

namespace cpfast::scored_cross_entropy {

// Differences of logits are added in shares, lest their sum leave the range that their mean keeps.
// A power of two costs no digits.
inline constexpr double kShare = 0x1p-16;

inline int64_t row_count(const Tensor& input) {
  return input.dim() == 2 ? input.size(0) : input.size(0) * input.size(1);
}
inline int64_t class_count(const Tensor& input) { return input.size(input.dim() - 1); }

// Where rows begin: those of a sequence may be as far apart as they like, and so may sequences.
struct Layout {
  int64_t tokens, sequence_stride, token_stride;

  explicit Layout(const Tensor& tensor)
      : tokens(tensor.dim() == 2 ? 1 : tensor.size(1)),
        sequence_stride(tensor.stride(0)),
        token_stride(tensor.dim() == 2 ? 0 : tensor.stride(1)) {}

  CPFAST_HOST_DEVICE int64_t operator()(int64_t row) const {
    return tokens == 1 ? row * sequence_stride
                       : row / tokens * sequence_stride + row % tokens * token_stride;
  }
};

// What the kernels of both devices read and write.
template <typename T>
struct Rows {
  const T* input;
  Layout at;
  const int64_t* target;
  const Real<T>* weight;  // null where every weight is 1
  int64_t count, classes, ignore_index;
  double smoothing;
  Real<T>* loss;    // [count], times weight; null in the backward pass
  Real<T>* stats;   // null where the gradient is written at once
  float* scores;    // [3, count]; null in the backward pass
  float* recorded;  // null, or [count]
  Score score;
  T* grad;  // null, or where gradients go
  Layout grad_at;
};

inline bool has_unit_column_stride(const Tensor& input) {
  return class_count(input) == 1 || input.stride(input.dim() - 1) == 1;
}

inline Tensor with_unit_column_stride(const Tensor& input) {
  return has_unit_column_stride(input) ? input : torch::stable::contiguous(input);
}

// [N] or [B, T], contiguous, beside logits of [N, C] or [B, T, C].
inline void check_rows(const char* op, const char* name, const Tensor& tensor, const Tensor& input,
                       ScalarType dtype) {
  if (input.dim() == 2) return check_vector(op, name, tensor, input.size(0), dtype, input);
  check(tensor.dim() == 2 && tensor.size(0) == input.size(0) && tensor.size(1) == input.size(1), op,
        name, ": expected shape [", input.size(0), ", ", input.size(1), "], got ",
        shape_of(tensor));
  check(tensor.scalar_type() == dtype, op, name, ": expected dtype ", dtype_name(dtype), ", got ",
        dtype_name(tensor.scalar_type()));
  check(same_device(tensor, input), op, name, ": expected device ", device_of(input), ", got ",
        device_of(tensor));
  check(tensor.is_contiguous(), op, name, ": expected a contiguous tensor");
}

inline void check_arguments(const char* op, const Tensor& input, const Tensor& target,
                            const std::optional<Tensor>& weight, double label_smoothing,
                            int64_t reduction) {
  check(input.dim() == 2 || input.dim() == 3, op,
        "input: expected logits of shape [N, C] or [B, T, C], got ", shape_of(input));
  check(class_count(input) >= 1, op, "input: expected at least one class, got shape ",
        shape_of(input));
  check(is_floating(input.scalar_type()), op,
        "input: expected float32, float64, float16 or bfloat16, got ",
        dtype_name(input.scalar_type()));
  check_rows(op, "target", target, input, ScalarType::Long);
  if (weight) check_rows(op, "weight", *weight, input, compute_dtype(input));
  check(label_smoothing >= 0 && label_smoothing <= 1, op,
        "label_smoothing: expected a number in [0, 1], got ", label_smoothing);
  check(reduction >= 0 && reduction <= 2, op, "reduction: expected 0, 1 or 2, got ", reduction);
}

inline void check_grad(const char* op, const Tensor& grad, const Tensor& input) {
  check(same_shape(grad, input), op, "grad: expected shape ", shape_of(input), ", got ",
        shape_of(grad));
  check(grad.scalar_type() == input.scalar_type(), op, "grad: expected dtype ",
        dtype_name(input.scalar_type()), ", got ", dtype_name(grad.scalar_type()));
  check(same_device(grad, input), op, "grad: expected device ", device_of(input), ", got ",
        device_of(grad));
  // From the narrower of the two other strides to the wider one, each must span what lies within.
  const int64_t narrow = grad.dim() == 3 && grad.stride(1) > grad.stride(0) ? 0 : grad.dim() - 2;
  bool overlaps = !has_unit_column_stride(grad);
  int64_t within = class_count(grad);
  for (const int64_t i : {narrow, grad.dim() - 2 - narrow}) {
    overlaps |= grad.size(i) > 1 && grad.stride(i) < within;
    within = std::max(within, grad.stride(i) * grad.size(i));
    if (grad.dim() == 2) break;
  }
  check(!overlaps || grad.numel() == 0, op,
        "grad: expected rows side by side that do not overlap, got strides [", grad.stride(0), ", ",
        grad.stride(1), grad.dim() == 3 ? ", " : "",
        grad.dim() == 3 ? std::to_string(grad.stride(2)) : "", "]");
}

// What is written lies apart from what is read, but for a gradient over its logits.
inline void check_written(const char* op, const Tensor& input, const Tensor& target,
                          const std::optional<Tensor>& weight, const std::optional<Tensor>& grad,
                          const std::optional<Tensor>& table, const std::optional<Tensor>& index) {
  for (const auto& [name, written] : {std::pair{"table", &table}, std::pair{"grad", &grad}}) {
    if (!*written) continue;
    const bool over_input =
        written == &grad && (*written)->const_data_ptr() == input.const_data_ptr();
    if (!over_input) check_apart(op, "input", input, name, **written);
    check_apart(op, "target", target, name, **written);
    if (weight) check_apart(op, "weight", *weight, name, **written);
    if (index) check_apart(op, "index", *index, name, **written);
  }
  if (grad && table) check_apart(op, "grad", *grad, "table", *table);
}

inline void check_backward_arguments(const char* op, const Tensor& grad_loss, const Tensor& input,
                                     const Tensor& softmax_stats, int64_t reduction) {
  if (reduction == 0)
    check_rows(op, "grad_loss", grad_loss, input, compute_dtype(input));
  else
    check(grad_loss.numel() == 1 && grad_loss.scalar_type() == compute_dtype(input) &&
              same_device(grad_loss, input),
          op, "grad_loss: expected one ", dtype_name(compute_dtype(input)), " on ",
          device_of(input), ", got shape ", shape_of(grad_loss), ", dtype ",
          dtype_name(grad_loss.scalar_type()), ", device ", device_of(grad_loss));
  check(softmax_stats.dim() == 2 && softmax_stats.size(0) == row_count(input) + 1 &&
            softmax_stats.size(1) == 2 && softmax_stats.is_contiguous() &&
            softmax_stats.scalar_type() == compute_dtype(input) &&
            same_device(softmax_stats, input),
        op, "softmax_stats: expected the one that the forward pass returned, got shape ",
        shape_of(softmax_stats), ", dtype ", dtype_name(softmax_stats.scalar_type()), ", device ",
        device_of(softmax_stats));
}

inline void check_factor(const Tensor& grad, const Tensor& factor) {
  const char* op = "rescale_gradient";
  check(grad.dim() == 2 || grad.dim() == 3, op, "grad: expected shape [N, C] or [B, T, C], got ",
        shape_of(grad));
  check(is_floating(grad.scalar_type()) && has_unit_column_stride(grad), op,
        "grad: expected floating rows side by side, got ", dtype_name(grad.scalar_type()));
  check(factor.scalar_type() == compute_dtype(grad) && same_device(factor, grad) &&
            factor.is_contiguous() && (factor.numel() == 1 || factor.numel() == row_count(grad)),
        op, "factor: expected [] or ", row_count(grad), " of ", dtype_name(compute_dtype(grad)),
        " on ", device_of(grad), ", got shape ", shape_of(factor), ", dtype ",
        dtype_name(factor.scalar_type()), ", device ", device_of(factor));
}

}  // namespace cpfast::scored_cross_entropy
