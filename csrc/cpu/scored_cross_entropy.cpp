#include "../scored_cross_entropy.h"

#include "../empty.h"
#include "isa.h"
#include "samples.h"

#include <limits>
#include <tuple>

namespace cpfast::scored_cross_entropy {
namespace {

template <typename T>
struct Backward {
  Rows<T> rows;
  const Real<T>* grad_loss;
  Reduction reduction;

  Real<T> upstream(int64_t row) const {
    switch (reduction) {
      case Reduction::kMean: return grad_loss[0] * rows.stats[2 * rows.count];
      case Reduction::kSum: return grad_loss[0];
      default: return grad_loss[row];
    }
  }
};

#define CPFAST_KERNEL "scored_cross_entropy_kernel.h"
#include "foreach_isa.h"

// A thread is worth waking for 8K logits (about 10 us of work).
template <typename Run>
void for_rows(int64_t rows, int64_t classes, const Run& run) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 8192 / classes), run);
}

// How many rows are not ignored, or the sum of the weights of their classes.
template <typename R>
double count_targets(const char* op, const Tensor& target, int64_t rows, int64_t classes,
                     int64_t ignore_index, const R* class_weight) {
  if (is_distribution(target)) return static_cast<double>(rows);
  const int64_t* y = target.const_data_ptr<int64_t>();
  double counted = 0;
  for (int64_t row = 0; row < target.numel(); ++row) {
    const bool counts = y[row] != ignore_index;
    const bool is_known = !counts || (y[row] >= 0 && y[row] < classes);
    if (ignore_index == std::numeric_limits<int64_t>::min()) {  // none is ignored
      check(is_known, op, "target[", row, "]: expected a class in [0, ", classes, "), got ",
            y[row]);
    } else {
      check(is_known, op, "target[", row, "]: expected a class in [0, ", classes,
            ") or ignore_index ", ignore_index, ", got ", y[row]);
    }
    if (counts) counted += class_weight ? class_weight[y[row]] : 1;
  }
  return counted;
}

template <typename T>
void record(const Rows<T>& rows, int64_t sequences, const int64_t* index, float* table) {
  const int64_t tokens = rows.at.tokens;
  for (int64_t i = 0; i < sequences; ++i) {
    double sum = 0;
    int64_t counted = 0;
    for (int64_t row = i * tokens; row < (i + 1) * tokens; ++row) {
      sum += rows.recorded[row];
      counted += !rows.ignores(row);
    }
    if (counted > 0) table[index[i]] = static_cast<float>(sum / counted);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward_cpu(
    Tensor input, Tensor target, std::optional<Tensor> weight, double label_smoothing,
    int64_t ignore_index, int64_t reduction, std::optional<Tensor> grad,
    std::optional<Tensor> table, std::optional<Tensor> index, int64_t score,
    std::optional<Tensor> class_weight, double z_loss, std::optional<Tensor> weight_table) {
  const char* op = "scored_cross_entropy";
  check_arguments(op, input, target, weight, class_weight, label_smoothing, z_loss, reduction);
  if (grad) check_grad(op, *grad, input);
  check_samples(op, table, weight_table, weight, index, score, input);
  check_written(op, input, target, weight, class_weight, weight_table, grad, table, index);
  const bool soft = is_soft(target, class_weight, label_smoothing);
  check_soft_grad(op, grad, soft);
  input = with_known_strides(input, soft);
  const int64_t rows = row_count(input), classes = class_count(input);
  if (index) check_index(op, *index, sample_count(table, weight_table));

  const ScalarType real = compute_dtype(input);
  const bool reduces = reduction != 0;
  Tensor loss = reduces  ? empty(input, {}, real)
      : input.dim() == 2 ? empty(input, {input.size(0)}, real)
                         : empty(input, {input.size(0), input.size(1)}, real);
  Tensor scores = empty(input, {3, rows}, ScalarType::Float);
  Tensor stats = empty(input, {grad ? 0 : rows + 1, 2}, real);
  std::vector<float> recorded(table ? rows : 0);

  for_floating(input.scalar_type(), [&]<typename T>(T) {
    using R = Real<T>;
    const R* class_weights = class_weight ? class_weight->const_data_ptr<R>() : nullptr;
    const double counted = count_targets(op, target, rows, classes, ignore_index, class_weights);
    std::vector<R> losses(reduces ? rows : 0);
    const Rows<T> f{.input = input.const_data_ptr<T>(),
                    .at = Layout(input),
                    .target = classes_of(target),
                    .distributions = distributions_of<R>(target),
                    .weight = weight ? weight->const_data_ptr<R>() : nullptr,
                    .class_weight = class_weights,
                    .weight_table = weight_table ? weight_table->const_data_ptr<float>() : nullptr,
                    .index = index ? index->const_data_ptr<int64_t>() : nullptr,
                    .count = rows,
                    .classes = classes,
                    .ignore_index = ignore_index,
                    .smoothing = label_smoothing,
                    .z_loss = z_loss,
                    .loss = reduces ? losses.data() : loss.mutable_data_ptr<R>(),
                    .stats = grad ? nullptr : stats.mutable_data_ptr<R>(),
                    .scores = scores.mutable_data_ptr<float>(),
                    .recorded = table ? recorded.data() : nullptr,
                    .score = static_cast<Score>(score),
                    .grad = grad ? grad->mutable_data_ptr<T>() : nullptr,
                    .grad_at = Layout(grad ? *grad : input)};
    // Of no rows it is infinite, and the mean NaN, as torch's is.
    const double factor = reduction == static_cast<int64_t>(Reduction::kMean) ? 1.0 / counted : 1.0;
    for_rows(rows, classes, [&](int64_t begin, int64_t end) {
      CPFAST_DISPATCH(forward_rows<T>)(f, begin, end, static_cast<R>(factor));
    });
    if (f.stats) f.stats[2 * rows] = f.stats[2 * rows + 1] = static_cast<R>(factor);
    if (reduces) *loss.mutable_data_ptr<R>() = static_cast<R>(sum_of(losses.data(), rows) * factor);
    if (table)
      record(f, input.size(0), index->const_data_ptr<int64_t>(), table->mutable_data_ptr<float>());
  });
  return {loss, scores, stats};
}

Tensor backward_cpu(Tensor grad_loss, Tensor input, Tensor target, Tensor softmax_stats,
                    std::optional<Tensor> weight, double label_smoothing, int64_t ignore_index,
                    int64_t reduction, std::optional<Tensor> class_weight, double z_loss,
                    std::optional<Tensor> weight_table, std::optional<Tensor> index) {
  const char* op = "scored_cross_entropy_backward";
  check_arguments(op, input, target, weight, class_weight, label_smoothing, z_loss, reduction);
  check_backward_arguments(op, grad_loss, input, softmax_stats, reduction);
  check_samples(op, std::nullopt, weight_table, weight, index, 0, input);
  if (index) check_index(op, *index, weight_table->size(0));
  // The targets may have changed since.
  count_targets<float>(op, target, row_count(input), class_count(input), ignore_index, nullptr);
  input = with_known_strides(input, is_soft(target, class_weight, label_smoothing));
  Tensor grad_input = empty_beside(input);

  for_floating(input.scalar_type(), [&]<typename T>(T) {
    using R = Real<T>;
    const Backward<T> b{
        .rows = {.input = input.const_data_ptr<T>(),
                 .at = Layout(input),
                 .target = classes_of(target),
                 .distributions = distributions_of<R>(target),
                 .weight = weight ? weight->const_data_ptr<R>() : nullptr,
                 .class_weight = class_weight ? class_weight->const_data_ptr<R>() : nullptr,
                 .weight_table = weight_table ? weight_table->const_data_ptr<float>() : nullptr,
                 .index = index ? index->const_data_ptr<int64_t>() : nullptr,
                 .count = row_count(input),
                 .classes = class_count(input),
                 .ignore_index = ignore_index,
                 .smoothing = label_smoothing,
                 .z_loss = z_loss,
                 .stats = const_cast<R*>(softmax_stats.const_data_ptr<R>()),
                 .grad = grad_input.mutable_data_ptr<T>(),
                 .grad_at = Layout(grad_input)},
        .grad_loss = grad_loss.const_data_ptr<R>(),
        .reduction = static_cast<Reduction>(reduction)};
    for_rows(b.rows.count, b.rows.classes,
             [&](int64_t begin, int64_t end) { CPFAST_DISPATCH(backward_rows<T>)(b, begin, end); });
  });
  return grad_input;
}

void rescale_cpu(Tensor grad, Tensor factor) {
  check_factor(grad, factor);
  if (grad.numel() == 0) return;
  const int64_t classes = class_count(grad);
  const Layout at(grad);
  for_floating(grad.scalar_type(), [&]<typename T>(T) {
    const Real<T>* factors = factor.const_data_ptr<Real<T>>();
    const bool single = factor.numel() == 1;
    if (single && factors[0] == 1) return;
    T* first = grad.mutable_data_ptr<T>();
    for_rows(row_count(grad), classes, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const Real<T> value = factors[single ? 0 : row];
        if (value == 1) continue;
        if (at.class_stride == 1)
          CPFAST_DISPATCH(rescale_row<T>)(first + at(row), classes, value);
        else
          CPFAST_DISPATCH(rescale_strided<T>)(first + at(row), at.class_stride, classes, value);
      }
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) {
  m.impl("scored_cross_entropy", TORCH_BOX(&forward_cpu));
  m.impl("scored_cross_entropy_backward", TORCH_BOX(&backward_cpu));
  m.impl("rescale_gradient", TORCH_BOX(&rescale_cpu));
}

}  // namespace cpfast::scored_cross_entropy
