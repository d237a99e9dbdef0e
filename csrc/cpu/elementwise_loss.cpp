#include "../elementwise_loss.h"

#include "isa.h"
#include "samples.h"

#include <atomic>
#include <tuple>

namespace cpfast::elementwise_loss {
namespace {

// Up to so many elements the lanes hold rows; above, they hold the elements of one row.
constexpr int64_t kFewElements = 32;
// Longer rows are taken in parts, so that few of them keep all threads busy.
constexpr int64_t kPart = 1 << 16;
// A thread is worth waking for so many elements.
constexpr int64_t kGrain = 1 << 14;

#define CPFAST_KERNEL "elementwise_loss_kernel.h"
#include "foreach_isa.h"

// Returns whether all targets may be.
template <Loss kLoss, bool kSums, bool kGrad, typename T, typename U>
bool run_rows(const Rows<T, U>& f) {
  using R = Real<T>;
  std::atomic<bool> valid = true;
  if (f.elements <= kPart) {
    torch::stable::parallel_for(
        0, f.count, std::max<int64_t>(1, kGrain / f.elements), [&](int64_t begin, int64_t end) {
          if (!CPFAST_DISPATCH(whole_rows<kLoss, kSums, kGrad, T, U>)(f, begin, end)) valid = false;
        });
    return valid;
  }
  const int64_t parts = (f.elements + kPart - 1) / kPart;
  std::vector<Sums<R>> sums(kSums ? f.count * parts : 0);
  torch::stable::parallel_for(0, f.count * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * kPart;
      if (!CPFAST_DISPATCH(part_of_row<kLoss, kSums, kGrad, T, U>)(
              f, i / parts, first, std::min(f.elements, first + kPart), &sums[kSums ? i : 0]))
        valid = false;
    }
  });
  if constexpr (kSums) {
    for (int64_t row = 0; row < f.count; ++row) {
      Sums<R> whole = sums[row * parts];
      for (int64_t i = row * parts + 1; i < (row + 1) * parts; ++i) {
        whole.loss += sums[i].loss;
        whole.squares += sums[i].squares;
        whole.least = std::min(whole.least, sums[i].least);
        whole.wrong |= sums[i].wrong;
      }
      CPFAST_DISPATCH(finish_row<kLoss, T, U>)(f, row, whole);
    }
  }
  return valid;
}

// Names the first target that may not be.
template <typename T, typename U>
[[noreturn]] void refuse_target(const char* op, const Rows<T, U>& f, const Tensor& target) {
  for (int64_t i = 0; i < f.count * f.elements; ++i) {
    const double value = f.target[i / f.elements * f.target_stride + i % f.elements];
    if (value >= 0 && value <= 1) continue;
    std::string at;
    for (int64_t d = target.dim() - 1, rest = i; d >= 0; rest /= target.size(d--))
      at = std::to_string(rest % target.size(d)) + (at.empty() ? "" : ", ") + at;
    fail(op, "target[", at, "]: expected a number in [0, 1], got ", value);
  }
  fail(op, "target: expected numbers in [0, 1], and some changed while they were read");
}

template <Loss kLoss>
std::tuple<Tensor, Tensor> forward(const char* op, Tensor input, Tensor target,
                                   std::optional<Tensor> weight, std::optional<Tensor> pos_weight,
                                   int64_t reduction, std::optional<Tensor> grad,
                                   std::optional<Tensor> table, std::optional<Tensor> index,
                                   int64_t score) {
  check_arguments(op, input, target, weight, pos_weight, reduction);
  if (grad) check_grad(op, *grad, input);
  check_table(op, table, index, score, input, 1 + kScores<kLoss>);
  check_written(op, input, target, weight, pos_weight, grad, table, index);
  if (table) check_index(op, *index, table->size(0));
  input = with_rows(input);
  target = with_rows(target);
  const int64_t rows = input.size(0);
  const ScalarType real = compute_dtype(input);
  const bool reduces = reduction != 0;
  Tensor loss = reduces ? torch::stable::new_empty(input, {}, real)
                        : torch::stable::new_empty(input, {rows}, real);
  Tensor scores = torch::stable::new_empty(input, {kScores<kLoss>, rows}, ScalarType::Float);
  std::vector<float> recorded(table ? rows : 0);

  for_dtypes(input, target, [&]<typename T, typename U>(T, U) {
    using R = Real<T>;
    std::vector<R> losses(reduces ? rows : 0);
    Rows<T, U> f = rows_of<kLoss, T, U>(input, target, weight, pos_weight, reduction);
    f.loss = reduces ? losses.data() : loss.mutable_data_ptr<R>();
    f.scores = scores.mutable_data_ptr<float>();
    f.recorded = table ? recorded.data() : nullptr;
    f.score = static_cast<Score>(score);
    f.grad = grad ? grad->mutable_data_ptr<T>() : nullptr;
    if (!(grad ? run_rows<kLoss, true, true>(f) : run_rows<kLoss, true, false>(f)))
      refuse_target(op, f, target);
    if (reduces) {
      const bool is_mean = reduction == static_cast<int64_t>(Reduction::kMean);
      // Of no rows it is infinite, and the mean NaN, as torch's is.
      const double factor = is_mean ? 1.0 / static_cast<double>(rows) : 1.0;
      *loss.mutable_data_ptr<R>() = static_cast<R>(sum_of(losses.data(), rows) * factor);
    }
  });
  if (table) {
    const int64_t* at = index->const_data_ptr<int64_t>();
    float* places = table->mutable_data_ptr<float>();
    for (int64_t i = 0; i < rows; ++i) places[at[i]] = recorded[i];
  }
  return {loss, scores};
}

template <Loss kLoss>
Tensor backward(const char* op, Tensor grad_loss, Tensor input, Tensor target,
                std::optional<Tensor> weight, std::optional<Tensor> pos_weight, int64_t reduction) {
  check_arguments(op, input, target, weight, pos_weight, reduction);
  check_grad_loss(op, grad_loss, input, reduction);
  input = with_rows(input);
  target = with_rows(target);
  Tensor grad_input = torch::stable::new_empty(input, input.sizes());
  for_dtypes(input, target, [&]<typename T, typename U>(T, U) {
    Rows<T, U> f = rows_of<kLoss, T, U>(input, target, weight, pos_weight, reduction);
    f.grad_loss = grad_loss.const_data_ptr<Real<T>>();
    f.grad = grad_input.mutable_data_ptr<T>();
    run_rows<kLoss, false, true>(f);
  });
  return grad_input;
}

}  // namespace

std::tuple<Tensor, Tensor> binary_cross_entropy_cpu(Tensor input, Tensor target,
                                                    std::optional<Tensor> weight,
                                                    std::optional<Tensor> pos_weight,
                                                    int64_t reduction, std::optional<Tensor> grad,
                                                    std::optional<Tensor> table,
                                                    std::optional<Tensor> index, int64_t score) {
  return forward<Loss::kBinaryCrossEntropy>("scored_binary_cross_entropy", input, target, weight,
                                            pos_weight, reduction, grad, table, index, score);
}

Tensor binary_cross_entropy_backward_cpu(Tensor grad_loss, Tensor input, Tensor target,
                                         std::optional<Tensor> weight,
                                         std::optional<Tensor> pos_weight, int64_t reduction) {
  return backward<Loss::kBinaryCrossEntropy>("scored_binary_cross_entropy_backward", grad_loss,
                                             input, target, weight, pos_weight, reduction);
}

std::tuple<Tensor, Tensor> mse_cpu(Tensor input, Tensor target, std::optional<Tensor> weight,
                                   int64_t reduction, std::optional<Tensor> grad,
                                   std::optional<Tensor> table, std::optional<Tensor> index,
                                   int64_t score) {
  return forward<Loss::kMse>("scored_mse", input, target, weight, std::nullopt, reduction, grad,
                             table, index, score);
}

Tensor mse_backward_cpu(Tensor grad_loss, Tensor input, Tensor target, std::optional<Tensor> weight,
                        int64_t reduction) {
  return backward<Loss::kMse>("scored_mse_backward", grad_loss, input, target, weight, std::nullopt,
                              reduction);
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) {
  m.impl("scored_binary_cross_entropy", TORCH_BOX(&binary_cross_entropy_cpu));
  m.impl("scored_binary_cross_entropy_backward", TORCH_BOX(&binary_cross_entropy_backward_cpu));
  m.impl("scored_mse", TORCH_BOX(&mse_cpu));
  m.impl("scored_mse_backward", TORCH_BOX(&mse_backward_cpu));
}

}  // namespace cpfast::elementwise_loss
