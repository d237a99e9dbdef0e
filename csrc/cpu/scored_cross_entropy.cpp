#include "../scored_cross_entropy.h"

#include "isa.h"

#include <tuple>

namespace cpfast::scored_cross_entropy {
namespace {

template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct Forward {
  const T* input;
  const int64_t* target;
  const Real<T>* weight;  // null where every weight is 1
  int64_t row_stride, classes, ignore_index;
  double smoothing;
  Real<T>*loss, *stats;
  float *el2n, *margin, *correct;

  void write_ignored(int64_t row) const {
    loss[row] = 0;
    el2n[row] = margin[row] = correct[row] = 0;
    stats[2 * row] = 0;
    stats[2 * row + 1] = 1;
  }

  // s1 and s2 are relative to the largest of the other logits, and gap is its exponential over
  // that of the largest of all: squares of a confident row's terms would underflow.
  void write(int64_t row, double nll, double s1, double s2, double gap, double total, double e_y,
             Real<T> x_y, Real<T> before, Real<T> after) const {
    const Real<T> others = std::max(before, after), max = std::max(others, x_y);
    const double z = s1 * gap + e_y, p = s1 * gap / z;
    double value = nll;
    if (smoothing > 0) {
      // The mean of lse - x_j, by differences. A masked target has an infinite loss.
      const double smooth = std::isinf(nll) ? nll : nll - total / classes;
      value = (1 - smoothing) * nll + smoothing * smooth;
    }
    loss[row] = static_cast<Real<T>>(weight ? weight[row] * value : value);
    el2n[row] = static_cast<float>(s1 > 0 ? p * std::sqrt(1 + s2 / (s1 * s1)) : p);
    margin[row] = std::isnan(nll) ? std::numeric_limits<float>::quiet_NaN()
                                  : static_cast<float>(x_y - others);
    correct[row] = !std::isnan(nll) && x_y > before && x_y >= after;
    stats[2 * row] = max;
    stats[2 * row + 1] = static_cast<Real<T>>(s1 * gap);
  }
};

template <typename T>
struct Backward {
  const T* input;
  const int64_t* target;
  const Real<T>*weight, *stats, *grad_loss;
  int64_t row_stride, classes, ignore_index;
  double smoothing;
  T* grad_input;

  Real<T> row_gradient(int64_t row) const {
    return weight ? weight[row] * grad_loss[row] : grad_loss[row];
  }

  // p_y - 1 is -s1 / Z, which keeps its digits; g is the row's gradient, scaled is g s1 / Z.
  Real<T> at_target(Real<T> g, Real<T> scaled) const {
    return static_cast<Real<T>>(g * (smoothing - smoothing / classes) - scaled);
  }
};

#define CPFAST_KERNEL "scored_cross_entropy_kernel.h"
#include "foreach_isa.h"

// A thread is worth waking for 8K logits (about 10 us of work).
int64_t rows_per_thread(int64_t classes) { return std::max<int64_t>(1, 8192 / classes); }

void check_targets(const char* op, const Tensor& target, int64_t classes, int64_t ignore_index) {
  const int64_t* y = target.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < target.size(0); ++row)
    check(y[row] == ignore_index || (y[row] >= 0 && y[row] < classes), op, "target[", row,
          "]: expected a class in [0, ", classes, ") or ignore_index ", ignore_index, ", got ",
          y[row]);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_cpu(
    Tensor input, Tensor target, std::optional<Tensor> weight, double label_smoothing,
    int64_t ignore_index) {
  const char* op = "scored_cross_entropy";
  check_arguments(op, input, target, weight, label_smoothing);
  input = with_unit_column_stride(input);
  const int64_t rows = input.size(0), classes = input.size(1);
  check_targets(op, target, classes, ignore_index);
  const auto vector = [&](ScalarType dtype) {
    return torch::stable::new_empty(input, {rows}, dtype);
  };
  const ScalarType real = compute_dtype(input);
  Tensor loss = vector(real), el2n = vector(ScalarType::Float), margin = vector(ScalarType::Float),
         correct = vector(ScalarType::Float),
         stats = torch::stable::new_empty(input, {rows, 2}, real);

  for_floating(input.scalar_type(), [&]<typename T>(T) {
    const Forward<T> f{input.const_data_ptr<T>(),
                       target.const_data_ptr<int64_t>(),
                       weight ? weight->const_data_ptr<Real<T>>() : nullptr,
                       input.stride(0),
                       classes,
                       ignore_index,
                       label_smoothing,
                       loss.mutable_data_ptr<Real<T>>(),
                       stats.mutable_data_ptr<Real<T>>(),
                       el2n.mutable_data_ptr<float>(),
                       margin.mutable_data_ptr<float>(),
                       correct.mutable_data_ptr<float>()};
    torch::stable::parallel_for(
        0, rows, rows_per_thread(classes),
        [&](int64_t begin, int64_t end) { CPFAST_DISPATCH(forward_rows<T>)(f, begin, end); });
  });
  return {loss, el2n, margin, correct, stats};
}

Tensor backward_cpu(Tensor grad_loss, Tensor input, Tensor target, Tensor softmax_stats,
                    std::optional<Tensor> weight, double label_smoothing, int64_t ignore_index) {
  const char* op = "scored_cross_entropy_backward";
  check_arguments(op, input, target, weight, label_smoothing);
  check_backward_arguments(op, grad_loss, input, softmax_stats);
  input = with_unit_column_stride(input);
  const int64_t rows = input.size(0), classes = input.size(1);
  Tensor grad_input = torch::stable::new_empty(input, {rows, classes});

  for_floating(input.scalar_type(), [&]<typename T>(T) {
    const Backward<T> b{input.const_data_ptr<T>(),
                        target.const_data_ptr<int64_t>(),
                        weight ? weight->const_data_ptr<Real<T>>() : nullptr,
                        softmax_stats.const_data_ptr<Real<T>>(),
                        grad_loss.const_data_ptr<Real<T>>(),
                        input.stride(0),
                        classes,
                        ignore_index,
                        label_smoothing,
                        grad_input.mutable_data_ptr<T>()};
    torch::stable::parallel_for(
        0, rows, rows_per_thread(classes),
        [&](int64_t begin, int64_t end) { CPFAST_DISPATCH(backward_rows<T>)(b, begin, end); });
  });
  return grad_input;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) {
  m.impl("scored_cross_entropy", TORCH_BOX(&forward_cpu));
  m.impl("scored_cross_entropy_backward", TORCH_BOX(&backward_cpu));
}

}  // namespace cpfast::scored_cross_entropy
