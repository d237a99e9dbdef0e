// scored_binary_cross_entropy(input, target, weight, pos_weight, reduction, Tensor(a!)? grad,
//                             Tensor(b!)? table, index, score) -> loss [N] or [], scores [3, N]
// scored_binary_cross_entropy_backward(grad_loss, input, target, weight, pos_weight, reduction)
//     -> grad_input, as input
// scored_mse(input, target, weight, reduction, Tensor(a!)? grad, Tensor(b!)? table, index, score)
//     -> loss [N] or [], scores [1, N]
// scored_mse_backward(grad_loss, input, target, weight, reduction) -> grad_input, as input
//
// input          [N, ...], of which a sample has L elements, at least one; float32, float64,
//                float16 or bfloat16. The elements of a sample lie side by side (others are copied)
// target         as input, of its dtype or in what it is computed in: float64 for float64 input,
//                else float32. Of binary_cross_entropy in [0, 1]
// weight         optional, [N]: multiplies the loss of each sample; in what is computed in, as are
//                loss, pos_weight and grad_loss
// pos_weight     optional, [L]
// reduction      0: none, 1: the sum over N, 2: the sum
// scores         float32: el2n and, of binary_cross_entropy, margin and correct
// grad           optional, as input, contiguous: the gradient of the reduced loss (of the sum,
//                where there is no reduction) is written here, in the same pass
// table, index   optional: table[index] = one of the sample's numbers, chosen by score (0: the loss
//                without its weight, 1: el2n, 2: margin, 3: correct), for the last of equal indices
//                alone. [M] float32, [N] int64
// grad_loss      [N] or [], what backward got from above
//
// With p = sigmoid(x), and w the pos_weight or 1, means being over the elements of a sample:
//     binary_cross_entropy: loss    = weight * mean(-w t log(p) - (1 - t) log(1 - p))
//                           el2n    = |p - t|_2
//                           margin  = min(t >= .5 ? x : -x)
//                           correct = 1 where x > 0 just where t >= .5
//     mse:                  loss    = weight * mean((x - t)^2)
//                           el2n    = |x - t|_2
// A sample with NaN has NaN in loss, el2n and margin, and correct 0. An infinite logit has the
// limit: no loss where the target agrees with it. On the CPU a target or an index out of range is
// an error; on CUDA, where an error would cost a synchronisation, such a target is as NaN, and such
// an index traps.
//
// Nothing but e = exp(-|x|), which keeps its digits where p is near 0 or 1:
//     -log(p) = max(-x, 0) + log1p(e),   -log(1 - p) = max(x, 0) + log1p(e),
//     p and 1 - p are 1 / (1 + e) and e / (1 + e),   p - t = (1 - t) p - t (1 - p).
// No sum has terms of two signs. A gradient needs no sum: backward reads the operands once more,
// and nothing else is kept for it.
#pragma once

#include "dispatch.h"
#include "scored_loss.h"

#include <algorithm>
#include <optional>

namespace cpfast::elementwise_loss {

enum class Loss { kBinaryCrossEntropy, kMse };

template <Loss kLoss>
inline constexpr int64_t kScores = kLoss == Loss::kMse ? 1 : 3;

// Logits are added in shares, lest their sum leave the range that their mean keeps; residuals of
// probabilities are squared as multiples, lest their squares underflow. Powers of two cost no
// digits.
inline constexpr double kShare = 0x1p-16;
template <Loss kLoss, typename R>
inline constexpr double kMultiple = kLoss == Loss::kMse || std::is_same_v<R, double> ? 1 : 0x1p60;

// What the kernels of both devices read and write.
template <typename T, typename U>
struct Rows {
  using R = Real<T>;

  const T* input;
  const U* target;
  int64_t input_stride, target_stride;  // from row to row
  const R* weight;                      // null where every weight is 1
  const R* pos_weight;                  // null, or [elements]
  int64_t count, elements;
  R scale;             // of gradients: 1 over what a mean is over, and a derivative's factor
  const R* grad_loss;  // null in the forward pass
  bool one_grad_loss;
  R* loss;          // [count], times weight; null in the backward pass
  float* scores;    // [kScores, count]
  float* recorded;  // null, or [count]
  Score score;
  T* grad;  // null, or [count, elements]

  // What the derivatives of a row are multiplied by.
  CPFAST_HOST_DEVICE R gradient_factor(int64_t row) const {
    const R own = weight ? weight[row] * scale : scale;
    return grad_loss ? own * grad_loss[one_grad_loss ? 0 : row] : own;
  }
};

// Over the elements of a row, or of a part of it.
template <typename R>
struct Sums {
  double loss, squares;  // squares of residuals' multiples
  R least;               // margin
  int wrong;             // is an element on the wrong side?
};

inline int64_t element_count(const Tensor& input) {
  int64_t count = 1;
  for (int64_t i = 1; i < input.dim(); ++i) count *= input.size(i);
  return count;
}

// Whether the elements of a row lie side by side.
inline bool has_rows(const Tensor& tensor) {
  int64_t step = 1;
  for (int64_t i = tensor.dim() - 1; i > 0; step *= tensor.size(i--))
    if (tensor.size(i) != 1 && tensor.stride(i) != step) return false;
  return true;
}

inline Tensor with_rows(const Tensor& tensor) {
  return has_rows(tensor) ? tensor : torch::stable::contiguous(tensor);
}

inline void check_arguments(const char* op, const Tensor& input, const Tensor& target,
                            const std::optional<Tensor>& weight,
                            const std::optional<Tensor>& pos_weight, int64_t reduction) {
  check(input.dim() >= 1, op, "input: expected shape [N, ...], got []");
  check(is_floating(input.scalar_type()), op,
        "input: expected float32, float64, float16 or bfloat16, got ",
        dtype_name(input.scalar_type()));
  check(element_count(input) >= 1, op, "input: expected at least one element a sample, got shape ",
        shape_of(input));
  check(same_shape(target, input), op, "target: expected shape ", shape_of(input),
        " as input, got ", shape_of(target));
  check(target.scalar_type() == input.scalar_type() || target.scalar_type() == compute_dtype(input),
        op, "target: expected dtype ", dtype_name(input.scalar_type()), " or ",
        dtype_name(compute_dtype(input)), ", got ", dtype_name(target.scalar_type()));
  check(same_device(target, input), op, "target: expected device ", device_of(input), ", got ",
        device_of(target));
  if (weight) check_vector(op, "weight", *weight, input.size(0), compute_dtype(input), input);
  if (pos_weight)
    check_vector(op, "pos_weight", *pos_weight, element_count(input), compute_dtype(input), input);
  check(reduction >= 0 && reduction <= 2, op, "reduction: expected 0, 1 or 2, got ", reduction);
}

inline void check_grad(const char* op, const Tensor& grad, const Tensor& input) {
  check(same_shape(grad, input) && grad.is_contiguous(), op,
        "grad: expected a contiguous tensor of shape ", shape_of(input), ", got ", shape_of(grad));
  check(grad.scalar_type() == input.scalar_type(), op, "grad: expected dtype ",
        dtype_name(input.scalar_type()), ", got ", dtype_name(grad.scalar_type()));
  check(same_device(grad, input), op, "grad: expected device ", device_of(input), ", got ",
        device_of(grad));
}

// What is written lies apart from what is read.
inline void check_written(const char* op, const Tensor& input, const Tensor& target,
                          const std::optional<Tensor>& weight,
                          const std::optional<Tensor>& pos_weight,
                          const std::optional<Tensor>& grad, const std::optional<Tensor>& table,
                          const std::optional<Tensor>& index) {
  for (const auto& [name, written] : {std::pair{"table", &table}, std::pair{"grad", &grad}}) {
    if (!*written) continue;
    check_apart(op, "input", input, name, **written);
    check_apart(op, "target", target, name, **written);
    if (weight) check_apart(op, "weight", *weight, name, **written);
    if (pos_weight) check_apart(op, "pos_weight", *pos_weight, name, **written);
    if (index) check_apart(op, "index", *index, name, **written);
  }
  if (grad && table) check_apart(op, "grad", *grad, "table", *table);
}

inline void check_grad_loss(const char* op, const Tensor& grad_loss, const Tensor& input,
                            int64_t reduction) {
  const int64_t size = reduction == 0 ? input.size(0) : 1;
  check(grad_loss.numel() == size && grad_loss.is_contiguous() &&
            grad_loss.scalar_type() == compute_dtype(input) && same_device(grad_loss, input),
        op, "grad_loss: expected ", size, " of ", dtype_name(compute_dtype(input)), " on ",
        device_of(input), ", got shape ", shape_of(grad_loss), ", dtype ",
        dtype_name(grad_loss.scalar_type()), ", device ", device_of(grad_loss));
}

// run(T{}, U{}) for the element types of input and target, which have been checked.
template <typename Run>
void for_dtypes(const Tensor& input, const Tensor& target, const Run& run) {
  for_floating(input.scalar_type(), [&]<typename T>(T) {
    if (target.scalar_type() == input.scalar_type())
      run(T{}, T{});
    else if constexpr (!std::is_same_v<T, Real<T>>)
      run(T{}, Real<T>{});
  });
}

// What forward and backward passes read.
template <Loss kLoss, typename T, typename U>
Rows<T, U> rows_of(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                   const std::optional<Tensor>& pos_weight, int64_t reduction) {
  using R = Real<T>;
  const int64_t count = input.size(0), elements = element_count(input);
  const bool is_mean = reduction == static_cast<int64_t>(Reduction::kMean);
  const double over = static_cast<double>(elements) * (is_mean ? static_cast<double>(count) : 1.0);
  return {.input = input.const_data_ptr<T>(),
          .target = target.const_data_ptr<U>(),
          .input_stride = input.stride(0),
          .target_stride = target.stride(0),
          .weight = weight ? weight->const_data_ptr<R>() : nullptr,
          .pos_weight = pos_weight ? pos_weight->const_data_ptr<R>() : nullptr,
          .count = count,
          .elements = elements,
          .scale = static_cast<R>((kLoss == Loss::kMse ? 2 : 1) / over),
          .one_grad_loss = reduction != 0};
}

}  // namespace cpfast::elementwise_loss
