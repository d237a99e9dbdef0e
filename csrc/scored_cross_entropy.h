// scored_cross_entropy(input, target, weight, label_smoothing, ignore_index, reduction,
//                      Tensor(a!)? grad, Tensor(b!)? table, index, score, class_weight, z_loss,
//                      weight_table)
//     -> loss [N] or [], scores [3, N], softmax_stats [N + 1, 2]
// scored_cross_entropy_backward(grad_loss, input, target, softmax_stats, weight, label_smoothing,
//                               ignore_index, reduction, class_weight, z_loss, weight_table, index)
//     -> grad_input, as input
// rescale_gradient(Tensor(a!) grad, factor) -> ()
//
// input          [N, C] logits, or [B, T, C] for N = B * T tokens; float32, float64, float16 or
//                bfloat16; the logits of a row lie side by side, or those of a class do, as in
//                images [B, C, H, W] of which this is a view (others are copied)
// target         [N] or [B, T] int64, in [0, C) or ignore_index; an ignore_index of -2^63 promises
//                that no target is ignored, and saves CUDA from counting them. Or a distribution
//                over the classes, shaped as input: then no row is ignored
// weight         optional, one a row: multiplies its loss
// weight_table   optional [M] float32, in place of weight: that of a sample is weight_table[index]
// class_weight   optional [C]: multiplies each class's term of the cross-entropy
// z_loss         what is added, times the square of the row's log-sum-exp
// reduction      0: none, 1: the sum over the number of rows that are not ignored, or over the sum
//                of the class weights of their targets, 2: the sum
// loss, stats    float64 for float64 input, else float32, as are weights, distributions and
//                grad_loss
// scores         float32: el2n, margin and correct, one after the other
// grad           optional, shaped as input: the gradient of the reduced loss (of the sum, where
//                there is no reduction) is written here, in the same pass over the logits, with one
//                exponential each; it may be input itself. softmax_stats is empty then
// table, index   optional: table[index] = one of the row's numbers, chosen by score (0: the loss
//                without weight and z_loss, 1: el2n, 2: margin, 3: correct), for the last of equal
//                indices alone. [M] float32, [N] or [B] int64. A sequence of tokens has the mean
//                over those that are not ignored; of ignored rows and sequences nothing is written
// factor         [] or as target: what backward got from above; where it is 1, nothing is done
//
// With p = softmax(x) and y the target:
//     loss    = weight * (sum_j t_j (lse - x_j) + z_loss * lse^2)
//     t_j     = class_weight_j * ((1 - smoothing) * [j = y] + smoothing / C)
//     el2n    = |p - onehot(y)|_2
//     margin  = x_y - max_{j != y} x_j          (+inf where C is 1)
//     correct = 1 where y is the first of the largest logits, else 0
// Of a distribution, that stands for [j = y] and for onehot(y), and y is its first largest class.
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
// rows that are not ignored, or their class weights' sum.
//
// Of a distribution, and where each class has a weight and a part of the smoothing, it is the
// largest logit that is left out (soft_row): lse = m + log1p(s), s the sum of the others'
// exponentials, and p_m - 1 = -s / (1 + s). What backward needs is (m, s) again.
#pragma once

#include "dispatch.h"
#include "scored_loss.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace cpfast::scored_cross_entropy {

// Differences of logits are added in shares, lest their sum leave the range that their mean keeps.
// A power of two costs no digits.
inline constexpr double kShare = 0x1p-16;

inline int64_t row_count(const Tensor& input) {
  return input.dim() == 2 ? input.size(0) : input.size(0) * input.size(1);
}
inline int64_t class_count(const Tensor& input) { return input.size(input.dim() - 1); }

// Where rows begin: those of a sequence may be as far apart as they like, and so may sequences.
// Its classes are those of one stride.
struct Layout {
  int64_t tokens, sequence_stride, token_stride, class_stride;

  explicit Layout(const Tensor& tensor)
      : tokens(tensor.dim() == 2 ? 1 : tensor.size(1)),
        sequence_stride(tensor.stride(0)),
        token_stride(tensor.dim() == 2 ? 0 : tensor.stride(1)),
        class_stride(class_count(tensor) == 1 ? 1 : tensor.stride(tensor.dim() - 1)) {}

  CPFAST_HOST_DEVICE int64_t operator()(int64_t row) const {
    return tokens == 1 ? row * sequence_stride
                       : row / tokens * sequence_stride + row % tokens * token_stride;
  }
};

// Must each class's own share of the target be looked at?
CPFAST_HOST_DEVICE inline bool has_shares(bool has_distributions, bool has_class_weight,
                                          double smoothing) {
  return has_distributions || (has_class_weight && smoothing > 0);
}

// What the kernels of both devices read and write.
template <typename T>
struct Rows {
  const T* input;
  Layout at;
  const int64_t* target;         // null where there are distributions
  const Real<T>* distributions;  // [count, classes], or null
  const Real<T>* weight;         // null where every weight is 1
  const Real<T>* class_weight;   // the same
  const float* weight_table;     // the same; else a row's is weight_table[index[its sample]]
  const int64_t* index;
  int64_t count, classes, ignore_index;
  double smoothing, z_loss;
  Real<T>* loss;    // [count], times weight; null in the backward pass
  Real<T>* stats;   // null where the gradient is written at once
  float* scores;    // [3, count]; null in the backward pass
  float* recorded;  // null, or [count]
  Score score;
  T* grad;  // null, or where gradients go
  Layout grad_at;

  CPFAST_HOST_DEVICE bool ignores(int64_t row) const {
    return target && target[row] == ignore_index;
  }
  CPFAST_HOST_DEVICE bool is_soft() const {
    return has_shares(distributions, class_weight, smoothing);
  }
  // Of the row's class, which must be one.
  CPFAST_HOST_DEVICE Real<T> weight_of_class(int64_t row) const {
    return class_weight ? class_weight[target[row]] : Real<T>(1);
  }
  CPFAST_HOST_DEVICE Real<T> weight_of_row(int64_t row) const {
    if (weight_table) return weight_table[index[at.tokens == 1 ? row : row / at.tokens]];
    return weight ? weight[row] : Real<T>(1);
  }
  CPFAST_HOST_DEVICE bool is_weighted() const { return weight || weight_table; }
};

inline bool has_unit_column_stride(const Tensor& input) {
  return class_count(input) == 1 || input.stride(input.dim() - 1) == 1;
}

// Do the logits of a class lie side by side, row after row?
inline bool has_unit_row_stride(const Tensor& input) {
  return !has_unit_column_stride(input) && input.stride(input.dim() - 2) == 1;
}

inline bool is_distribution(const Tensor& target) {
  return target.scalar_type() != ScalarType::Long;
}

inline const int64_t* classes_of(const Tensor& target) {
  return is_distribution(target) ? nullptr : target.const_data_ptr<int64_t>();
}

template <typename R>
const R* distributions_of(const Tensor& target) {
  return is_distribution(target) ? target.const_data_ptr<R>() : nullptr;
}

inline bool is_soft(const Tensor& target, const std::optional<Tensor>& class_weight,
                    double label_smoothing) {
  return has_shares(is_distribution(target), class_weight.has_value(), label_smoothing);
}

// Kernels of soft rows have no strides of classes.
inline Tensor with_known_strides(const Tensor& input, bool soft) {
  return has_unit_column_stride(input) || (!soft && has_unit_row_stride(input))
      ? input
      : torch::stable::contiguous(input);
}

// Uninitialised, with the logits of a class side by side where those of `input` are.
inline Tensor empty_beside(const Tensor& input) {
  if (!has_unit_row_stride(input)) return torch::stable::new_empty(input, input.sizes());
  const int64_t last = input.dim() - 1;
  std::vector<int64_t> sizes(input.sizes().begin(), input.sizes().end());
  std::swap(sizes[last - 1], sizes[last]);
  return torch::stable::transpose(torch::stable::new_empty(input, sizes), last - 1, last);
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
                            const std::optional<Tensor>& weight,
                            const std::optional<Tensor>& class_weight, double label_smoothing,
                            double z_loss, int64_t reduction) {
  check(input.dim() == 2 || input.dim() == 3, op,
        "input: expected logits of shape [N, C] or [B, T, C], got ", shape_of(input));
  check(class_count(input) >= 1, op, "input: expected at least one class, got shape ",
        shape_of(input));
  check(is_floating(input.scalar_type()), op,
        "input: expected float32, float64, float16 or bfloat16, got ",
        dtype_name(input.scalar_type()));
  if (!is_distribution(target)) {
    check_rows(op, "target", target, input, ScalarType::Long);
  } else {
    check(target.scalar_type() == compute_dtype(input), op, "target: expected int64 classes or ",
          dtype_name(compute_dtype(input)), " distributions, got ",
          dtype_name(target.scalar_type()));
    check(same_shape(target, input), op, "target: expected distributions of shape ",
          shape_of(input), ", got ", shape_of(target));
    check(same_device(target, input), op, "target: expected device ", device_of(input), ", got ",
          device_of(target));
    check(target.is_contiguous(), op, "target: expected a contiguous tensor");
  }
  if (weight) check_rows(op, "weight", *weight, input, compute_dtype(input));
  if (class_weight)
    check_vector(op, "class_weight", *class_weight, class_count(input), compute_dtype(input),
                 input);
  check(label_smoothing >= 0 && label_smoothing <= 1, op,
        "label_smoothing: expected a number in [0, 1], got ", label_smoothing);
  check(z_loss >= 0 && z_loss < std::numeric_limits<double>::infinity(), op,
        "z_loss: expected a finite number of at least 0, got ", z_loss);
  check(reduction >= 0 && reduction <= 2, op, "reduction: expected 0, 1 or 2, got ", reduction);
}

inline void check_grad(const char* op, const Tensor& grad, const Tensor& input) {
  check(same_shape(grad, input), op, "grad: expected shape ", shape_of(input), ", got ",
        shape_of(grad));
  check(grad.scalar_type() == input.scalar_type(), op, "grad: expected dtype ",
        dtype_name(input.scalar_type()), ", got ", dtype_name(grad.scalar_type()));
  check(same_device(grad, input), op, "grad: expected device ", device_of(input), ", got ",
        device_of(grad));
  // From the narrowest stride to the widest, each must span what lies within.
  int64_t dims[] = {0, 1, 2}, within = 1;
  std::stable_sort(dims, dims + grad.dim(),
                   [&](int64_t a, int64_t b) { return grad.stride(a) < grad.stride(b); });
  bool overlaps = !has_unit_column_stride(grad) && !has_unit_row_stride(grad);
  for (int64_t d = 0; d < grad.dim(); ++d) {
    const int64_t i = dims[d];
    overlaps |= grad.size(i) > 1 && grad.stride(i) < within;
    if (grad.size(i) > 1) within = grad.stride(i) * grad.size(i);
  }
  check(!overlaps || grad.numel() == 0, op,
        "grad: expected rows side by side that do not overlap, got strides [", grad.stride(0), ", ",
        grad.stride(1), grad.dim() == 3 ? ", " : "",
        grad.dim() == 3 ? std::to_string(grad.stride(2)) : "", "]");
}

inline void check_soft_grad(const char* op, const std::optional<Tensor>& grad, bool soft) {
  check(!soft || !grad || has_unit_column_stride(*grad), op,
        "grad: expected the logits of a row side by side, for distributions and for class weights "
        "that are smoothed");
}

inline void check_samples(const char* op, const std::optional<Tensor>& table,
                          const std::optional<Tensor>& weight_table,
                          const std::optional<Tensor>& weight, const std::optional<Tensor>& index,
                          int64_t score, const Tensor& input) {
  check((table || weight_table) == index.has_value(), op, index ? "table" : "index",
        ": expected one, as ", index ? "index" : "table", " is given");
  check(!weight || !weight_table, op, "weight_table: expected none, as weight is given");
  check(score >= 0 && score <= 3, op, "score: expected 0, 1, 2 or 3, got ", score);
  for (const auto& [name, of_samples] :
       {std::pair{"table", &table}, std::pair{"weight_table", &weight_table}}) {
    if (!*of_samples) continue;
    const Tensor& values = **of_samples;
    check(values.dim() == 1, op, name, ": expected shape [M], got ", shape_of(values));
    check_vector(op, name, values, values.size(0), ScalarType::Float, input);
  }
  if (index) check_vector(op, "index", *index, input.size(0), ScalarType::Long, input);
}

// How many samples an index may point to: as many as each table has.
inline int64_t sample_count(const std::optional<Tensor>& table,
                            const std::optional<Tensor>& weight_table) {
  if (!table) return weight_table->size(0);
  return weight_table ? std::min(table->size(0), weight_table->size(0)) : table->size(0);
}

// What is written lies apart from what is read, but for a gradient over its logits.
inline void check_written(const char* op, const Tensor& input, const Tensor& target,
                          const std::optional<Tensor>& weight,
                          const std::optional<Tensor>& class_weight,
                          const std::optional<Tensor>& weight_table,
                          const std::optional<Tensor>& grad, const std::optional<Tensor>& table,
                          const std::optional<Tensor>& index) {
  for (const auto& [name, written] : {std::pair{"table", &table}, std::pair{"grad", &grad}}) {
    if (!*written) continue;
    const bool over_input =
        written == &grad && (*written)->const_data_ptr() == input.const_data_ptr();
    if (!over_input) check_apart(op, "input", input, name, **written);
    check_apart(op, "target", target, name, **written);
    if (weight) check_apart(op, "weight", *weight, name, **written);
    if (class_weight) check_apart(op, "class_weight", *class_weight, name, **written);
    if (weight_table) check_apart(op, "weight_table", *weight_table, name, **written);
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
  check(is_floating(grad.scalar_type()) &&
            (has_unit_column_stride(grad) || has_unit_row_stride(grad)),
        op, "grad: expected floating rows side by side, got ", dtype_name(grad.scalar_type()));
  check(factor.scalar_type() == compute_dtype(grad) && same_device(factor, grad) &&
            factor.is_contiguous() && (factor.numel() == 1 || factor.numel() == row_count(grad)),
        op, "factor: expected [] or ", row_count(grad), " of ", dtype_name(compute_dtype(grad)),
        " on ", device_of(grad), ", got shape ", shape_of(factor), ", dtype ",
        dtype_name(factor.scalar_type()), ", device ", device_of(factor));
}

}  // namespace cpfast::scored_cross_entropy
