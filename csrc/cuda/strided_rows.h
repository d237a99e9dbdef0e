// Rows whose classes lie apart, as those of images [B, C, H, W] do: a thread has a row, and its
// neighbours have the rows beside it, so that they read what lies side by side.
#pragma once

#include "../scored_cross_entropy.h"

#include "finish_batch.h"
#include "forward_rows.h"
#include "row_gradient.h"
#include "row_sums.h"

namespace cpfast::scored_cross_entropy {

inline constexpr int kStridedThreads = 128;

// Logits that a thread has in flight.
inline constexpr int kStridedUnroll = 8;

inline int64_t strided_blocks(int64_t rows) {
  return (rows + kStridedThreads - 1) / kStridedThreads;
}

template <typename T>
__device__ bool has_class(const Rows<T>& f, int64_t row) {
  const int64_t target = f.target[row];
  return target != f.ignore_index && target >= 0 && target < f.classes;
}

template <typename T>
__device__ void write_strided_gradient(const Rows<T>& f, int64_t row,
                                       const RowGradient<Real<T>>& g) {
  using R = Real<T>;
  const T* x = f.input + f.at(row);
  T* grad = f.grad + f.grad_at(row);
  const int64_t target = f.target[row];
#pragma unroll kUnroll
  for (int64_t c = 0; c < f.classes; ++c) {
    const R value =
        exp_below(static_cast<R>(x[c * f.at.class_stride]) - g.max) * g.per_sum - g.smooth;
    grad[c * f.grad_at.class_stride] = static_cast<T>(c == target ? g.at_target : value);
  }
}

template <typename T>
__device__ void fill_strided_gradient(const Rows<T>& f, int64_t row) {
  T* grad = f.grad + f.grad_at(row);
  const T value = static_cast<T>(f.ignores(row) ? Real<T>(0) : kNaN<Real<T>>);
  for (int64_t c = 0; c < f.classes; ++c) grad[c * f.grad_at.class_stride] = value;
}

template <typename T, bool kGrad>
__global__ void __launch_bounds__(kStridedThreads, 4)
    forward_strided(const __grid_constant__ Forward<T> f) {
  using R = Real<T>;
  const int64_t row = int64_t{blockIdx.x} * kStridedThreads + threadIdx.x;
  const bool exists = row < f.count, counts = exists && has_class(f, row);
  const R scale = kGrad ? f.template scale<kStridedThreads>() : R(0);
  double loss = 0;
  if (counts) {
    const T* x = f.input + f.at(row);
    const int64_t target = f.target[row], stride = f.at.class_stride;
    const R x_y = static_cast<R>(x[target * stride]);
    RowSums<R> sums;
    for (int64_t c = 0; c < f.classes; c += kStridedUnroll) {
      R logits[kStridedUnroll][1];
#pragma unroll
      for (int u = 0; u < kStridedUnroll; ++u)
        logits[u][0] = c + u < f.classes ? static_cast<R>(x[(c + u) * stride]) : kLowest<R>;
      sums.template observe<1>(logits, c, target, f.classes, f.smoothing > 0, x_y);
      sums.add(logits, sums.settle());
    }
    R max, s1;
    loss = write_sums<T>(f, row, x_y, sums, max, s1);
    write_stats<T>(f, row, max, s1);
    if constexpr (kGrad)
      write_strided_gradient<T>(f, row, gradient_of<T>(f, row, scale, max, s1, exp(x_y - max)));
  } else if (exists) {
    loss = write_without_target<T>(f, row);
    if constexpr (kGrad) fill_strided_gradient<T>(f, row);
  }
  if (f.batch.reduction != Reduction::kNone) {
    const double sum = block_sum<kStridedThreads>(loss);
    const double counted =
        block_sum<kStridedThreads>(exists && !f.ignores(row) ? count_of(f, row) : 0.0);
    if (threadIdx.x == 0) write_part(f.batch, blockIdx.x, sum, counted);
  }
  if (f.batch.ticket && is_last_block(f.batch.ticket)) finish_batch<kStridedThreads, T>(f, f.batch);
}

template <typename T>
__global__ void __launch_bounds__(kStridedThreads, 4)
    backward_strided(const __grid_constant__ Backward<T> b) {
  using R = Real<T>;
  const int64_t row = int64_t{blockIdx.x} * kStridedThreads + threadIdx.x;
  if (row >= b.count) return;
  if (!has_class(b, row)) return fill_strided_gradient<T>(b, row);
  const R max = b.stats[2 * row];
  const R x_y = static_cast<R>(b.input[b.at(row) + b.target[row] * b.at.class_stride]);
  write_strided_gradient<T>(
      b, row, gradient_of<T>(b, row, b.upstream(row), max, b.stats[2 * row + 1], exp(x_y - max)));
}

}  // namespace cpfast::scored_cross_entropy
