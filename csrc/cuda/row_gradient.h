// The gradient of a row, and how rows are shared among lanes and blocks.
#pragma once

#include "../scored_cross_entropy.h"

#include "device.h"
#include "launch.h"
#include "row_sums.h"

#include <algorithm>

namespace cpfast::scored_cross_entropy {

// Lanes that share a row: few where a row has few classes, or most of them would be idle.
inline constexpr int kFewLanes = 8, kStreamLanes = 512;

template <int kLanes>
constexpr int kThreads = kLanes > 256 ? kLanes : 256;

// Accesses of 16 bytes that a lane has in flight while it streams: 32 KB a block.
inline constexpr int kUnroll = 4;

// Blocks that a multiprocessor is to hold at least: 1,024 threads, which leaves each of them 64
// registers, or 512 where those would not suffice.
template <typename T, int kLanes>
constexpr int kResident = (std::is_same_v<T, double> ? 512 : 1024) / kThreads<kLanes>;

// Blocks of kStreamLanes at a time on an H100.
inline constexpr int64_t kStreamSlots = 132 * 2;

// Long rows are split among blocks, by their number and length alone: where they are few, and where
// those that may be under way at a time are too few to keep a device busy.
inline constexpr int64_t kFewRows = 64, kSplitClasses = 8192, kMaxSplits = 32;

inline int64_t streamed_rows(int64_t row_bytes) {
  return std::max<int64_t>(1, Launcher::kStreamedBytes / row_bytes);
}

inline int64_t splits_of(int64_t rows, int64_t classes, int64_t row_bytes) {
  const int64_t most = std::clamp<int64_t>(classes / kSplitClasses, 1, kMaxSplits);
  return rows < kFewRows ? most
                         : std::clamp<int64_t>(kStreamSlots / streamed_rows(row_bytes), 1, most);
}

template <int kLanes>
int64_t blocks_for(int64_t rows) {
  constexpr int64_t kRows = kThreads<kLanes> / kLanes;
  return (rows + kRows - 1) / kRows;
}

// Runs run(lanes) where rows only stream through.
template <typename Run>
void for_lanes(int64_t classes, const Run& run) {
  if (classes <= 64) return run(std::integral_constant<int, kFewLanes>{});
  if (classes <= 1024) return run(std::integral_constant<int, 32>{});
  if (classes <= 8192) return run(std::integral_constant<int, 256>{});
  return run(std::integral_constant<int, kStreamLanes>{});
}

// The part of a split row that a block has: a multiple of 16 bytes long.
struct Split {
  int64_t begin, end;

  __device__ Split(int64_t splits, int64_t classes) {
    const int64_t part = ((classes + splits - 1) / splits + 15) / 16 * 16;
    begin = min(classes, blockIdx.x % splits * part);
    end = min(classes, begin + part);
  }
};

template <typename T>
struct Backward : Rows<T> {
  const Real<T>* grad_loss;
  Reduction reduction;

  __device__ Real<T> upstream(int64_t row) const {
    switch (reduction) {
      case Reduction::kMean: return grad_loss[0] * this->stats[2 * this->count];
      case Reduction::kSum: return grad_loss[0];
      default: return grad_loss[row];
    }
  }
};

// What the gradient of a row is made of: exp(x - max) * per_sum - smooth, and at the target.
template <typename R>
struct RowGradient {
  R max, per_sum, smooth, at_target;
};

// What z_loss adds to the factor of p; `weight` is the row's, with what comes from above.
template <typename T>
__device__ Real<T> of_z_loss(const Rows<T>& f, Real<T> weight, double lse) {
  return f.z_loss > 0 ? static_cast<Real<T>>(2 * f.z_loss * weight * lse) : Real<T>(0);
}

// scale comes from above; s1 and e_y are relative to the largest logit.
template <typename T>
__device__ RowGradient<Real<T>> gradient_of(const Rows<T>& f, int64_t row, Real<T> scale,
                                            Real<T> max, Real<T> s1, Real<T> e_y) {
  using R = Real<T>;
  const R weight = f.weight_of_row(row) * scale, g = weight * f.weight_of_class(row), z = s1 + e_y;
  const double share = f.smoothing / f.classes;
  R per_sum = g / z;
  // p_y - 1 is -s1 / Z, which keeps its digits.
  R at_target = static_cast<R>(g * (f.smoothing - share) - s1 * per_sum);
  if (f.z_loss > 0) {
    const R g_z = of_z_loss(f, weight, max + log(static_cast<double>(z)));
    at_target += g_z * (e_y / z);
    per_sum += g_z / z;
  }
  return {max, per_sum, static_cast<R>(g * share), at_target};
}

// Runs element(i) and vector(i), i being the first of kWidth classes, on the classes [begin, end)
// of a row of the gradient: vectors where they lie at a multiple of 16 bytes, elements at the ends.
// Backwards: what was read last is what the L2 cache is surest to hold.
template <typename T, int kLanes, typename Element, typename Vector>
__device__ void for_classes(int lane, const T* grad, int64_t begin, int64_t end,
                            const Element& element, const Vector& vector) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(grad + begin) % 16;
  const int64_t head = min(end, begin + static_cast<int64_t>((16 - past) % 16 / sizeof(T)));
  const int64_t vectors = (end - head) / kWidth<T>;
  if (begin + lane < head) element(begin + lane);
#pragma unroll kUnroll
  for (int64_t v = vectors - 1 - lane; v >= 0; v -= kLanes) vector(head + v * kWidth<T>);
  const int64_t last = head + vectors * kWidth<T> + lane;
  if (last < end) element(last);
}

// The classes [begin, end) of a row's gradient, from its logits.
template <typename T, int kLanes>
__device__ void write_gradient(const Rows<T>& f, int64_t row, int lane, int64_t begin, int64_t end,
                               const RowGradient<Real<T>>& g) {
  using R = Real<T>;
  const T* x = f.input + f.at(row);
  T* grad = f.grad + f.grad_at(row);
  const int64_t target = f.target[row];
  const auto write = [&]<bool kAligned>(std::bool_constant<kAligned>) {
    for_classes<T, kLanes>(
        lane, grad, begin, end,
        [&](int64_t i) {
          const R value = exp_below(static_cast<R>(x[i]) - g.max) * g.per_sum - g.smooth;
          grad[i] = static_cast<T>(i == target ? g.at_target : value);
        },
        [&](int64_t i) {
          R values[kWidth<T>];
          load<kAligned>(x + i, values);
#pragma unroll
          for (int k = 0; k < kWidth<T>; ++k)
            values[k] = exp_below(values[k] - g.max) * g.per_sum - g.smooth;
          const int64_t own = target - i;
          if (static_cast<uint64_t>(own) < kWidth<T>) {
#pragma unroll
            for (int k = 0; k < kWidth<T>; ++k)
              if (k == own) values[k] = g.at_target;
          }
          store(grad + i, values);
        });
  };
  // The vectors of the gradient are aligned, those of the logits where they lie alike.
  if ((reinterpret_cast<uintptr_t>(x) - reinterpret_cast<uintptr_t>(grad)) % 16 == 0)
    write(std::true_type{});
  else
    write(std::false_type{});
}

// That of a row without a target.
template <typename T, int kLanes>
__device__ void fill_gradient(const Rows<T>& f, int64_t row, int lane, int64_t begin, int64_t end) {
  T* grad = f.grad + f.grad_at(row);
  const Real<T> value = f.ignores(row) ? Real<T>(0) : kNaN<Real<T>>;
  Real<T> values[kWidth<T>];
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) values[k] = value;
  for_classes<T, kLanes>(
      lane, grad, begin, end, [&](int64_t i) { grad[i] = static_cast<T>(value); },
      [&](int64_t i) { store(grad + i, values); });
}

}  // namespace cpfast::scored_cross_entropy
