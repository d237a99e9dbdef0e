// Rows whose classes have a share of the target each: distributions, and class weights that are
// smoothed. Their lanes pass over them three times, of which the last two find them in the cache.
#pragma once

#include "../scored_cross_entropy.h"

#include "finish_batch.h"
#include "forward_rows.h"
#include "row_gradient.h"
#include "row_sums.h"

namespace cpfast::scored_cross_entropy {

inline constexpr int kSoftThreads = 256;

template <typename Run>
void for_soft_lanes(int64_t classes, const Run& run) {
  if (classes <= 1024) return run(std::integral_constant<int, 32>{});
  return run(std::integral_constant<int, kSoftThreads>{});
}

template <int kLanes>
int64_t soft_blocks(int64_t rows) {
  constexpr int64_t kRows = kSoftThreads / kLanes;
  return (rows + kRows - 1) / kRows;
}

// Over the lanes of a row, known to all of them; each must come here.
template <int kLanes>
__device__ double lanes_sum(double value) {
  if constexpr (kLanes == 32)
    return warp_sum(value);
  else
    return block_sum<kLanes>(value);
}

// A number, and where it first stands.
template <typename R>
struct Largest {
  R value = kLowest<R>;
  int64_t at = 0;

  // Of what comes later; NaN is passed over.
  __device__ void observe(R other, int64_t i) {
    if (other > value) {
      value = other;
      at = i;
    }
  }

  __device__ void merge(R other, int64_t i) {
    if (other > value || (other == value && i < at)) {
      value = other;
      at = i;
    }
  }

  __device__ void merge_lanes() {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const R other = __shfl_xor_sync(kAllLanes, value, offset);
      const int64_t i = __shfl_xor_sync(kAllLanes, at, offset);
      merge(other, i);
    }
  }

  template <int kLanes>
  __device__ void merge_all() {
    merge_lanes();
    if constexpr (kLanes > 32) {
      constexpr int kWarps = kLanes / 32;
      __shared__ R values[kWarps];
      __shared__ int64_t places[kWarps];
      if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = value;
        places[threadIdx.x / 32] = at;
      }
      __syncthreads();
      for (int w = 0; w < kWarps; ++w) merge(values[w], places[w]);
      __syncthreads();  // before they are written again
    }
  }
};

// A row, as its lanes see it.
template <typename T>
struct SoftRow {
  using R = Real<T>;
  const Rows<T>& f;
  const T* x;
  const R* distribution;  // null where there is a class
  int64_t target;
  R kept, smooth;

  __device__ SoftRow(const Rows<T>& f, int64_t row)
      : f(f),
        x(f.input + f.at(row)),
        distribution(f.distributions ? f.distributions + row * f.classes : nullptr),
        target(f.distributions ? 0 : f.target[row]),
        kept(static_cast<R>(1 - f.smoothing)),
        smooth(static_cast<R>(f.smoothing / f.classes)) {}

  __device__ R logit(int64_t c) const { return static_cast<R>(x[c]); }
  __device__ R asked(int64_t c) const { return distribution ? distribution[c] : R(c == target); }
  __device__ R share(int64_t c) const {
    const R value = kept * asked(c) + smooth;
    return f.class_weight ? f.class_weight[c] * value : value;
  }

  template <int kLanes>
  __device__ Largest<R> largest_logit(int lane) const {
    Largest<R> largest;
    for (int64_t c = lane; c < f.classes; c += kLanes) largest.observe(logit(c), c);
    largest.template merge_all<kLanes>();
    return largest;
  }

  // (total weight + g_z) p - weight t, p being exp(x - max) / z, and at the largest logit
  // 1 - s / z where that is more than a half: less has more digits as 1 / z.
  template <int kLanes>
  __device__ void write_gradient(int64_t row, int lane, const Largest<R>& best, double shares,
                                 R best_share, R s, R weight) const {
    const R z = 1 + s;
    const R g_z = of_z_loss(f, weight, best.value + log1p(static_cast<double>(s)));
    const R total = static_cast<R>(shares + best_share), factor = (weight * total + g_z) / z;
    T* grad = f.grad + f.grad_at(row);
    for (int64_t c = lane; c < f.classes; c += kLanes) {
      const R value = c == best.at && z <= 2
          ? weight * ((total - best_share) - total * (s / z)) + g_z / z
          : exp_below(logit(c) - best.value) * factor - weight * share(c);
      grad[c] = static_cast<T>(value);
    }
  }
};

template <typename T>
__device__ bool has_target(const Rows<T>& f, int64_t row) {
  if (row >= f.count) return false;
  if (f.distributions) return true;
  const int64_t target = f.target[row];
  return target != f.ignore_index && target >= 0 && target < f.classes;
}

template <typename T, int kLanes>
__device__ void fill_soft_gradient(const Rows<T>& f, int64_t row, int lane) {
  const T value = static_cast<T>(f.ignores(row) ? Real<T>(0) : kNaN<Real<T>>);
  for (int64_t c = lane; c < f.classes; c += kLanes) f.grad[f.grad_at(row) + c] = value;
}

// Returns the row's loss in its first lane, 0 in the others.
template <typename T, int kLanes, bool kGrad>
__device__ double soft_row(const Forward<T>& f, int64_t row, int lane, Real<T> scale) {
  using R = Real<T>;
  const SoftRow<T> r(f, row);
  const Largest<R> best = r.template largest_logit<kLanes>(lane);
  int64_t y = r.target;
  if (r.distribution) {
    Largest<R> first;
    for (int64_t c = lane; c < f.classes; c += kLanes) first.observe(r.distribution[c], c);
    first.template merge_all<kLanes>();
    y = first.at;
  }
  const R x_y = r.logit(y);
  // At the largest logit, p - t has the digits of 1 - p.
  Largest<R> second;
  double s = 0, shares = 0, loss = 0;
  for (int64_t c = lane; c < f.classes; c += kLanes) {
    if (c == best.at) continue;
    const R x = r.logit(c), below = x - best.value, share = r.share(c);
    second.observe(x, c);
    s += exp_below(below);
    shares += share;
    if (share != 0) loss -= share * below;  // of a masked logit without a share nothing
  }
  second.template merge_all<kLanes>();
  s = lanes_sum<kLanes>(s) + (best.value - best.value);  // NaN where the largest is infinite
  shares = lanes_sum<kLanes>(shares);
  loss = lanes_sum<kLanes>(loss);
  const R s1 = static_cast<R>(s), z = 1 + s1, best_share = r.share(best.at);
  double squares = 0;
  for (int64_t c = lane; c < f.classes; c += kLanes) {
    const R apart = c == best.at ? (1 - r.asked(c)) - s1 / z
                                 : exp_below(r.logit(c) - best.value) / z - r.asked(c);
    squares += apart * apart;
  }
  squares = lanes_sum<kLanes>(squares);
  if constexpr (kGrad)
    r.template write_gradient<kLanes>(row, lane, best, shares, best_share, s1,
                                      f.weight_of_row(row) * scale);
  if (lane != 0) return 0;
  const double rest = log1p(s), lse = best.value + rest;
  const double plain = loss + (shares + best_share) * rest;
  const double total = f.z_loss > 0 ? fma(f.z_loss * lse, lse, plain) : plain;
  const bool is_nan = plain != plain;
  const R weighted = static_cast<R>(f.is_weighted() ? f.weight_of_row(row) * total : total);
  write_row(f, row, weighted, static_cast<float>(plain), static_cast<float>(sqrt(squares)),
            is_nan
                ? kNaN<float>
                : static_cast<float>(y == best.at ? best.value - second.value : x_y - best.value),
            y == best.at && !is_nan);
  write_stats<T>(f, row, best.value, s1);
  return weighted;
}

template <typename T, int kLanes, bool kGrad>
__global__ void __launch_bounds__(kSoftThreads, 2)
    forward_soft(const __grid_constant__ Forward<T> f) {
  using R = Real<T>;
  const int lane = threadIdx.x % kLanes;
  const int64_t row = int64_t{blockIdx.x} * (kSoftThreads / kLanes) + threadIdx.x / kLanes;
  const R scale = kGrad ? f.template scale<kSoftThreads>() : R(0);
  double loss = 0;
  if (has_target(f, row)) {
    loss = soft_row<T, kLanes, kGrad>(f, row, lane, scale);
  } else if (row < f.count) {
    if (lane == 0) loss = write_without_target<T>(f, row);
    if constexpr (kGrad) fill_soft_gradient<T, kLanes>(f, row, lane);
  }
  if (f.batch.reduction != Reduction::kNone) {
    const bool adds = lane == 0 && row < f.count && !f.ignores(row);
    const double sum = block_sum<kSoftThreads>(loss);
    const double counted = block_sum<kSoftThreads>(adds ? count_of(f, row) : 0.0);
    if (threadIdx.x == 0) write_part(f.batch, blockIdx.x, sum, counted);
  }
  if (f.batch.ticket && is_last_block(f.batch.ticket)) finish_batch<kSoftThreads, T>(f, f.batch);
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kSoftThreads, 2)
    backward_soft(const __grid_constant__ Backward<T> b) {
  using R = Real<T>;
  const int lane = threadIdx.x % kLanes;
  const int64_t row = int64_t{blockIdx.x} * (kSoftThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= b.count) return;  // with all its lanes
  if (!has_target(b, row)) return fill_soft_gradient<T, kLanes>(b, row, lane);
  const SoftRow<T> r(b, row);
  const Largest<R> best = r.template largest_logit<kLanes>(lane);
  double shares = 0;
  for (int64_t c = lane; c < b.classes; c += kLanes)
    if (c != best.at) shares += r.share(c);
  shares = lanes_sum<kLanes>(shares);
  r.template write_gradient<kLanes>(row, lane, best, shares, r.share(best.at), b.stats[2 * row + 1],
                                    b.weight_of_row(row) * b.upstream(row));
}

}  // namespace cpfast::scored_cross_entropy
