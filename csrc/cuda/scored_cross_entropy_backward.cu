#include "../scored_cross_entropy.h"

#include "device.h"
#include "launch.h"
#include "row_gradient.h"
#include "soft_rows.h"
#include "strided_rows.h"

#include <algorithm>

namespace cpfast::scored_cross_entropy {
namespace {

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads<kLanes>, kResident<T, kLanes>)
    backward_rows(const __grid_constant__ Backward<T> b, int64_t splits) {
  using R = Real<T>;
  int lane = threadIdx.x;
  int64_t row, begin = 0, end = b.classes;
  if constexpr (kLanes == kStreamLanes) {
    const Split split(splits, b.classes);
    row = blockIdx.x / splits;
    begin = split.begin;
    end = split.end;
  } else {
    lane %= kLanes;
    row = int64_t{blockIdx.x} * (kThreads<kLanes> / kLanes) + threadIdx.x / kLanes;
    if (row >= b.count) return;
  }
  const int64_t target = b.target[row];
  if (target == b.ignore_index || target < 0 || target >= b.classes) {
    fill_gradient<T, kLanes>(b, row, lane, begin, end);
    return;
  }
  const R max = b.stats[2 * row], e_y = exp(static_cast<R>(b.input[b.at(row) + target]) - max);
  write_gradient<T, kLanes>(
      b, row, lane, begin, end,
      gradient_of<T>(b, row, b.upstream(row), max, b.stats[2 * row + 1], e_y));
}

template <typename T>
struct Rescaled {
  T* grad;
  Layout at;
  int64_t count, classes;
  const Real<T>* factors;
  bool single;
};

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads<kLanes>, 1)
    rescale_rows(const __grid_constant__ Rescaled<T> r) {
  using R = Real<T>;
  if (r.single && r.factors[0] == 1) return;
  constexpr int kRows = kThreads<kLanes> / kLanes;
  for (int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kLanes; row < r.count;
       row += int64_t{gridDim.x} * kRows) {
    const R factor = r.factors[r.single ? 0 : row];
    if (factor == 1) continue;
    T* const grad = r.grad + r.at(row);
    for_classes<T, kLanes>(
        threadIdx.x % kLanes, grad, 0, r.classes,
        [&](int64_t i) { grad[i] = static_cast<T>(static_cast<R>(grad[i]) * factor); },
        [&](int64_t i) {
          R values[kWidth<T>];
          load<true>(grad + i, values);
#pragma unroll
          for (int k = 0; k < kWidth<T>; ++k) values[k] *= factor;
          store(grad + i, values);
        });
  }
}

template <typename T>
__global__ void __launch_bounds__(kStridedThreads, 1)
    rescale_strided(const __grid_constant__ Rescaled<T> r) {
  const int64_t row = int64_t{blockIdx.x} * kStridedThreads + threadIdx.x;
  if (row >= r.count) return;
  const Real<T> factor = r.factors[r.single ? 0 : row];
  if (factor == 1) return;
  T* const grad = r.grad + r.at(row);
  for (int64_t c = 0; c < r.classes; ++c)
    grad[c * r.at.class_stride] =
        static_cast<T>(static_cast<Real<T>>(grad[c * r.at.class_stride]) * factor);
}

}  // namespace

Tensor backward_cuda(Tensor grad_loss, Tensor input, Tensor target, Tensor softmax_stats,
                     std::optional<Tensor> weight, double label_smoothing, int64_t ignore_index,
                     int64_t reduction, std::optional<Tensor> class_weight, double z_loss,
                     std::optional<Tensor> weight_table, std::optional<Tensor> index) {
  const char* op = "scored_cross_entropy_backward";
  check_arguments(op, input, target, weight, class_weight, label_smoothing, z_loss, reduction);
  check_backward_arguments(op, grad_loss, input, softmax_stats, reduction);
  check_samples(op, std::nullopt, weight_table, weight, index, 0, input);
  input = with_known_strides(input, is_soft(target, class_weight, label_smoothing));
  Tensor grad_input = empty_beside(input);

  const Launcher launch(input);
  for_floating(input.scalar_type(), [&]<typename T>(T) {
    using R = Real<T>;
    const Backward<T> b{
        {.input = input.const_data_ptr<T>(),
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
        grad_loss.const_data_ptr<R>(),
        static_cast<Reduction>(reduction)};
    if (b.is_soft())
      return for_soft_lanes(b.classes, [&](auto lanes) {
        launch(backward_soft<T, lanes()>, soft_blocks<lanes()>(b.count), kSoftThreads, b);
      });
    if (b.at.class_stride != 1 || b.grad_at.class_stride != 1)
      return launch(backward_strided<T>, strided_blocks(b.count), kStridedThreads, b);
    for_lanes(b.classes, [&](auto lanes) {
      const int64_t row_bytes = b.classes * static_cast<int64_t>(sizeof(T)),
                    splits = lanes() == kStreamLanes ? splits_of(b.count, b.classes, row_bytes) : 1;
      launch(backward_rows<T, lanes()>, splits * blocks_for<lanes()>(b.count), kThreads<lanes()>, b,
             splits);
    });
  });
  return grad_input;
}

void rescale_cuda(Tensor grad, Tensor factor) {
  check_factor(grad, factor);
  if (grad.numel() == 0) return;
  const Launcher launch(grad);
  for_floating(grad.scalar_type(), [&]<typename T>(T) {
    const Rescaled<T> r{
        grad.mutable_data_ptr<T>(),       Layout(grad),       row_count(grad), class_count(grad),
        factor.const_data_ptr<Real<T>>(), factor.numel() == 1};
    if (r.at.class_stride != 1)
      return launch(rescale_strided<T>, strided_blocks(r.count), kStridedThreads, r);
    for_lanes(r.classes, [&](auto lanes) {
      const int64_t resident = launch.resident_blocks(rescale_rows<T, lanes()>, kThreads<lanes()>);
      launch(rescale_rows<T, lanes()>, std::min(blocks_for<lanes()>(r.count), resident),
             kThreads<lanes()>, r);
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("scored_cross_entropy_backward", TORCH_BOX(&backward_cuda));
  m.impl("rescale_gradient", TORCH_BOX(&rescale_cuda));
}

}  // namespace cpfast::scored_cross_entropy
