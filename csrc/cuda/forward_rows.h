// What every forward kernel does with a row whose sums are known, whichever way it adds them.
#pragma once

#include "../scored_cross_entropy.h"

#include "finish_batch.h"
#include "row_sums.h"

#include <limits>

namespace cpfast::scored_cross_entropy {

// An ignore_index of no sample: rows need no counting.
inline constexpr int64_t kNoneIgnored = std::numeric_limits<int64_t>::min();

template <typename T>
CPFAST_HOST_DEVICE bool needs_counting(const Rows<T>& f) {
  return f.target && (f.ignore_index != kNoneIgnored || f.class_weight);
}

// What a row that is not ignored counts in the mean: its class's weight. One that is out of range
// will be NaN.
template <typename T>
__device__ double count_of(const Rows<T>& f, int64_t row) {
  if (f.class_weight == nullptr || f.target == nullptr) return 1;
  const int64_t target = f.target[row];
  return target >= 0 && target < f.classes ? static_cast<double>(f.class_weight[target]) : 1.0;
}

// How many rows are not ignored, or the sum of the weights of their classes, known to all threads
// of the block.
template <int kThreads, typename T>
__device__ double count_targets(const Rows<T>& f) {
  if (!needs_counting(f)) return static_cast<double>(f.count);
  double counted = 0;
  for (int64_t row = threadIdx.x; row < f.count; row += kThreads)
    if (!f.ignores(row)) counted += count_of(f, row);
  return block_sum<kThreads>(counted);
}

template <typename T>
struct Forward : Rows<T> {
  Batch<T> batch;
  const Real<T>* factor;  // null, or of the mean, where there are more than kCountedRows
  Real<T>* splits;  // [count, 3]: max, s1 and exp(x_y - max), which gradients of split rows need

  // Of the gradients. All threads of the block must ask.
  template <int kThreads>
  __device__ Real<T> scale() const {
    if (batch.reduction != Reduction::kMean) return 1;
    if (factor) return *factor;
    return static_cast<Real<T>>(1 / count_targets<kThreads>(*this));
  }
};

template <typename T>
__device__ void write_row(const Rows<T>& f, int64_t row, Real<T> loss, float plain, float el2n,
                          float margin, bool correct) {
  if (f.loss) f.loss[row] = loss;
  f.scores[row] = el2n;
  f.scores[f.count + row] = margin;
  f.scores[2 * f.count + row] = correct;
  if (f.recorded == nullptr) return;
  switch (f.score) {
    case Score::kEl2n: f.recorded[row] = el2n; break;
    case Score::kMargin: f.recorded[row] = margin; break;
    case Score::kCorrect: f.recorded[row] = correct; break;
    default: f.recorded[row] = plain;
  }
}

// The largest logit, and s1 relative to it.
template <typename R>
__device__ void with_target(const RowSums<R>& others, R x_y, R& max, R& s1) {
  max = fmax(others.max, x_y);
  s1 = static_cast<R>(others.s1 * (others.max == max ? R(1) : exp(others.max - max)));
}

// Writes a row that counts, and returns its loss; leaves the largest logit and s1 relative to it.
template <typename T>
__device__ Real<T> write_sums(const Rows<T>& f, int64_t row, Real<T> x_y,
                              const RowSums<Real<T>>& others, Real<T>& max, Real<T>& s1) {
  using R = Real<T>;
  with_target<R>(others, x_y, max, s1);
  const R e_y = exp(x_y - max), z = s1 + e_y;
  const R nll = x_y >= max ? log1p(s1 / e_y) : (max - x_y) + log(z);
  const bool is_nan = nll != nll;
  double value = nll;
  if (f.smoothing > 0) {
    // The mean of lse - x_j, by differences. A masked target has an infinite loss.
    const double smooth = isinf(nll) ? nll : nll - others.total / f.classes / kShare;
    // Written as one rounding in every kernel, for losses are the same in all of them.
    value = fma(f.smoothing, smooth, (1 - f.smoothing) * nll);
  }
  value *= f.weight_of_class(row);
  double total = value;
  if (f.z_loss > 0) {
    const double lse = max + log(static_cast<double>(z));
    total = fma(f.z_loss * lse, lse, value);
  }
  // sqrt(s2 + s1^2) with s1 taken out, so that s2 of a confident row does not underflow.
  const R ratio = static_cast<R>(others.s2) / static_cast<R>(others.s1) / static_cast<R>(others.s1);
  const R p = s1 / z, loss = static_cast<R>(f.is_weighted() ? f.weight_of_row(row) * total : total);
  write_row(f, row, loss, static_cast<float>(value),
            static_cast<float>(others.s1 > 0 ? p * sqrt(1 + ratio) : p),
            is_nan ? kNaN<float> : static_cast<float>(x_y - others.max),
            !is_nan && x_y > others.before && x_y >= others.after);
  return loss;
}

template <typename T>
__device__ void write_stats(const Rows<T>& f, int64_t row, Real<T> max, Real<T> s1) {
  if (f.stats == nullptr) return;
  f.stats[2 * row] = max;
  f.stats[2 * row + 1] = s1;
  // Where the loss is a mean, the last block, which comes after all rows, writes its factor here.
  if (row == 0) f.stats[2 * f.count] = f.stats[2 * f.count + 1] = 1;
}

// Writes a row whose target is ignored, or out of range: 0 or NaN throughout, as is its loss.
template <typename T>
__device__ Real<T> write_without_target(const Rows<T>& f, int64_t row) {
  using R = Real<T>;
  const bool ignored = f.target[row] == f.ignore_index;
  const float score = ignored ? 0.0f : kNaN<float>;
  const R loss = ignored ? R(0) : kNaN<R>;
  write_row(f, row, loss, score, score, score, false);
  write_stats(f, row, loss, ignored ? R(1) : kNaN<R>);
  return loss;
}

}  // namespace cpfast::scored_cross_entropy
