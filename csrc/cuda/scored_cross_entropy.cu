#include "../scored_cross_entropy.h"

#include "device.h"
#include "launch.h"

#include <limits>
#include <tuple>

namespace cpfast::scored_cross_entropy {
namespace {

// Lanes that share a row: few where a row has few classes, or most of them would be idle.
constexpr int kFewLanes = 8, kBlockLanes = 512;
constexpr int64_t kFewClasses = 64, kWarpClasses = 1024;

template <int kLanes>
constexpr int kThreads = kLanes > 256 ? kLanes : 256;

// Resident blocks that registers must suffice for: exp of float64 takes many.
template <typename T, int kLanes>
constexpr int kBlocks = (std::is_same_v<T, double> ? 512 : 1024) / kThreads<kLanes>;

// Accesses of 16 bytes that a lane has in flight: 16 classes, or 8 of float64.
template <typename T>
constexpr int kUnroll = (std::is_same_v<T, double> ? 8 : 16) / kWidth<T>;

template <typename Real>
constexpr Real kLowest = -std::numeric_limits<Real>::infinity();
template <typename Real>
constexpr Real kNaN = std::numeric_limits<Real>::quiet_NaN();

// The sums of some classes of a row, with the target left out and the largest logit subtracted.
template <typename Real>
struct RowSums {
  Real before = kLowest<Real>, after = kLowest<Real>;  // largest on either side of the target
  Real max = kLowest<Real>;                            // the larger of the two
  double s1 = 0, s2 = 0;                               // of exp(x - max), and of its square
  double total = 0;                                    // of x - x_y, x_y being the target's

  // x[u] holds classes at[u] and following; those of index `classes` and above are kLowest.
  template <int kVectors, int kCount>
  __device__ void add(Real (&x)[kVectors][kCount], const int64_t (&at)[kVectors], int64_t target,
                      int64_t classes, bool with_total, Real x_y) {
    Real sum = 0;
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      if (with_total && at[u] < classes) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) sum += x[u][k] - x_y;
      }
      const int64_t own = target - at[u];
      if (own >= 0 && own < kCount) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          if (k < own) before = fmax(before, x[u][k]);
          if (k > own) after = fmax(after, x[u][k]);
          if (k == own) x[u][k] = kLowest<Real>;
        }
      } else {
        // fmax passes NaN over; the sums will show it.
        Real largest = x[u][0];
#pragma unroll
        for (int k = 1; k < kCount; ++k) largest = fmax(largest, x[u][k]);
        if (own < 0)
          after = fmax(after, largest);
        else
          before = fmax(before, largest);
      }
    }
    rescale(fmax(before, after));
    // exp(-inf - -inf) would be NaN where there is nothing to add yet.
    const Real shift = max == kLowest<Real> ? Real(0) : max;
    Real e1 = 0, e2 = 0;
#pragma unroll
    for (int u = 0; u < kVectors; ++u)
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const Real e = exp(x[u][k] - shift);
        e1 += e;
        e2 += e * e;
      }
    s1 += e1;
    s2 += e2;
    total += sum;
  }

  __device__ void rescale(Real larger) {
    if (larger == max) return;
    const double factor = exp(max - larger);
    s1 *= factor;
    s2 *= factor * factor;
    max = larger;
  }

  // Leaves the sums of kLanes neighbouring lanes in each of them.
  template <int kLanes>
  __device__ void merge_lanes(bool with_total) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      before = fmax(before, __shfl_xor_sync(kAllLanes, before, offset));
      after = fmax(after, __shfl_xor_sync(kAllLanes, after, offset));
    }
    rescale(fmax(before, after));
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      s1 += __shfl_xor_sync(kAllLanes, s1, offset);
      s2 += __shfl_xor_sync(kAllLanes, s2, offset);
      if (with_total) total += __shfl_xor_sync(kAllLanes, total, offset);
    }
  }

  // Leaves the sums of the block in its first warp. Every warp must have merged its lanes.
  template <int kWarps>
  __device__ void merge_warps(bool with_total) {
    __shared__ Real befores[kWarps], afters[kWarps];
    __shared__ double s1s[kWarps], s2s[kWarps], totals[kWarps];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) {
      befores[warp] = before;
      afters[warp] = after;
      s1s[warp] = s1;
      s2s[warp] = s2;
      totals[warp] = total;
    }
    __syncthreads();
    if (warp != 0) return;
    *this = RowSums();
    if (lane < kWarps) {
      before = befores[lane];
      after = afters[lane];
      max = fmax(before, after);
      s1 = s1s[lane];
      s2 = s2s[lane];
      total = totals[lane];
    }
    merge_lanes<32>(with_total);
  }
};

template <typename T>
struct Forward {
  using Real = Compute<T>;
  const T* input;
  const int64_t* target;
  const Real* weight;  // null where every weight is 1
  int64_t rows, row_stride, classes, ignore_index;
  double smoothing;
  Real *loss, *stats;
  float *el2n, *margin, *correct;

  __device__ void write(int64_t row, Real loss_value, float el2n_value, float margin_value,
                        bool is_correct, Real max, Real s1) const {
    loss[row] = loss_value;
    el2n[row] = el2n_value;
    margin[row] = margin_value;
    correct[row] = is_correct;
    stats[2 * row] = max;
    stats[2 * row + 1] = s1;
  }

  __device__ void write(int64_t row, Real x_y, const RowSums<Real>& others) const {
    const Real max = fmax(others.max, x_y);
    const Real factor = others.max == max ? Real(1) : exp(others.max - max);
    const Real s1 = static_cast<Real>(others.s1 * factor), e_y = exp(x_y - max), z = s1 + e_y;
    const Real nll = x_y >= max ? log1p(s1 / e_y) : (max - x_y) + log(z);
    const bool is_nan = nll != nll;
    double value = nll;
    if (smoothing > 0) {
      // The mean of lse - x_j, by differences. A masked target has an infinite loss.
      const double smooth = isinf(nll) ? nll : nll - others.total / classes;
      value = (1 - smoothing) * nll + smoothing * smooth;
    }
    // sqrt(s2 + s1^2) with s1 taken out, so that s2 of a confident row does not underflow.
    const Real ratio = static_cast<Real>(others.s2) / static_cast<Real>(others.s1) /
        static_cast<Real>(others.s1);
    const Real p = s1 / z;
    write(row, static_cast<Real>(weight ? weight[row] * value : value),
          static_cast<float>(others.s1 > 0 ? p * sqrt(1 + ratio) : p),
          is_nan ? kNaN<float> : static_cast<float>(x_y - others.max),
          !is_nan && x_y > others.before && x_y >= others.after, max, s1);
  }
};

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads<kLanes>, (kBlocks<T, kLanes>))
    forward_rows(const __grid_constant__ Forward<T> f) {
  using Real = Compute<T>;
  constexpr int kVector = kWidth<T>, kVectors = kUnroll<T>;
  const int lane = threadIdx.x % kLanes;
  const int64_t row = int64_t{blockIdx.x} * (kThreads<kLanes> / kLanes) + threadIdx.x / kLanes;
  const int64_t target = row < f.rows ? f.target[row] : f.ignore_index;
  const bool counts = target != f.ignore_index && target >= 0 && target < f.classes;
  // A row that does not count has no classes, but its lanes must be there to merge.
  const int64_t classes = counts ? f.classes : 0;
  const bool with_total = f.smoothing > 0;
  const T* x = f.input + row * f.row_stride;
  const Real x_y = counts ? static_cast<Real>(x[target]) : Real(0);

  // Which lane adds which classes depends on their indices alone, not on their addresses.
  RowSums<Real> sums;
  const int64_t vectors = classes / kVector;
  {
    static_assert(kVector <= kLanes);
    const int64_t at[1] = {vectors * kVector + lane};
    Real last[1][1] = {{at[0] < classes ? static_cast<Real>(x[at[0]]) : kLowest<Real>}};
    sums.add(last, at, target, classes, with_total, x_y);
  }
  const auto add_vectors = [&]<bool kAligned>(std::bool_constant<kAligned>) {
    for (int64_t v = lane; v < vectors; v += kVectors * kLanes) {
      Real logits[kVectors][kVector];
      int64_t at[kVectors];
#pragma unroll
      for (int u = 0; u < kVectors; ++u) {
        const bool inside = v + u * kLanes < vectors;
        at[u] = inside ? (v + u * kLanes) * kVector : classes;
        if (inside) {
          load<kAligned>(x + at[u], logits[u]);
        } else {
#pragma unroll
          for (int k = 0; k < kVector; ++k) logits[u][k] = kLowest<Real>;
        }
      }
      sums.add(logits, at, target, classes, with_total, x_y);
    }
  };
  if (is_aligned(x))
    add_vectors(std::true_type{});
  else
    add_vectors(std::false_type{});

  sums.template merge_lanes<(kLanes < 32 ? kLanes : 32)>(with_total);
  if constexpr (kLanes > 32) sums.template merge_warps<kLanes / 32>(with_total);
  if (lane != 0 || row >= f.rows) return;
  if (counts)
    f.write(row, x_y, sums);
  else if (target == f.ignore_index)
    f.write(row, 0, 0, 0, false, 0, 1);
  else
    f.write(row, kNaN<Real>, kNaN<float>, kNaN<float>, false, kNaN<Real>, kNaN<Real>);
}

template <typename T>
struct Backward {
  using Real = Compute<T>;
  const T* input;
  const int64_t* target;
  const Real *weight, *stats, *grad_loss;
  int64_t rows, row_stride, classes, ignore_index;
  double smoothing;
  T* grad_input;
};

// Runs element(i) and vector(i), i being the first of kWidth classes, on the classes of a row of
// the gradient: vectors where they lie at a multiple of 16 bytes, elements at the ends.
template <typename T, int kLanes, typename Element, typename Vector>
__device__ void for_classes(int lane, const T* grad, int64_t classes, const Element& element,
                            const Vector& vector) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(grad) % 16;
  const int64_t head = min(classes, static_cast<int64_t>((16 - past) % 16 / sizeof(T)));
  const int64_t vectors = (classes - head) / kWidth<T>;
  if (lane < head) element(lane);
#pragma unroll kUnroll<T>
  for (int64_t v = lane; v < vectors; v += kLanes) vector(head + v * kWidth<T>);
  const int64_t last = head + vectors * kWidth<T> + lane;
  if (last < classes) element(last);
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads<kLanes>, (kBlocks<T, kLanes>))
    backward_rows(const __grid_constant__ Backward<T> b) {
  using Real = Compute<T>;
  constexpr int kVector = kWidth<T>;
  const int lane = threadIdx.x % kLanes;
  const int64_t row = int64_t{blockIdx.x} * (kThreads<kLanes> / kLanes) + threadIdx.x / kLanes;
  if (row >= b.rows) return;
  const int64_t target = b.target[row], classes = b.classes;
  T* grad = b.grad_input + row * classes;

  if (target == b.ignore_index || target < 0 || target >= classes) {
    const Real value = target == b.ignore_index ? Real(0) : kNaN<Real>;
    Real values[kVector];
#pragma unroll
    for (int k = 0; k < kVector; ++k) values[k] = value;
    for_classes<T, kLanes>(
        lane, grad, classes, [&](int64_t i) { grad[i] = static_cast<T>(value); },
        [&](int64_t i) { store(grad + i, values); });
    return;
  }

  const T* x = b.input + row * b.row_stride;
  const Real max = b.stats[2 * row], s1 = b.stats[2 * row + 1];
  const Real g = b.weight ? b.weight[row] * b.grad_loss[row] : b.grad_loss[row];
  const Real per_sum = g / (s1 + exp(static_cast<Real>(x[target]) - max));
  const double share = b.smoothing / classes;
  const Real smooth = static_cast<Real>(g * share);
  // p_y - 1 is -s1 / Z, which keeps its digits.
  const Real at_target = static_cast<Real>(g * (b.smoothing - share) - s1 * per_sum);
  const auto write = [&]<bool kAligned>(std::bool_constant<kAligned>) {
    for_classes<T, kLanes>(
        lane, grad, classes,
        [&](int64_t i) {
          const Real value = exp(static_cast<Real>(x[i]) - max) * per_sum - smooth;
          grad[i] = static_cast<T>(i == target ? at_target : value);
        },
        [&](int64_t i) {
          Real values[kVector];
          load<kAligned>(x + i, values);
#pragma unroll
          for (int k = 0; k < kVector; ++k) values[k] = exp(values[k] - max) * per_sum - smooth;
          const int64_t own = target - i;
          if (own >= 0 && own < kVector) {
#pragma unroll
            for (int k = 0; k < kVector; ++k)
              if (k == own) values[k] = at_target;
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

template <typename Run>
void for_lanes(int64_t classes, const Run& run) {
  if (classes <= kFewClasses) return run(std::integral_constant<int, kFewLanes>{});
  if (classes <= kWarpClasses) return run(std::integral_constant<int, 32>{});
  return run(std::integral_constant<int, kBlockLanes>{});
}

template <int kLanes>
int64_t blocks_for(int64_t rows) {
  constexpr int64_t kRows = kThreads<kLanes> / kLanes;
  return (rows + kRows - 1) / kRows;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_cuda(
    Tensor input, Tensor target, std::optional<Tensor> weight, double label_smoothing,
    int64_t ignore_index) {
  check_arguments("scored_cross_entropy", input, target, weight, label_smoothing);
  input = with_unit_column_stride(input);
  const int64_t rows = input.size(0), classes = input.size(1);
  const auto vector = [&](ScalarType dtype) {
    return torch::stable::new_empty(input, {rows}, dtype);
  };
  const ScalarType real = compute_dtype(input);
  Tensor loss = vector(real), el2n = vector(ScalarType::Float), margin = vector(ScalarType::Float),
         correct = vector(ScalarType::Float),
         stats = torch::stable::new_empty(input, {rows, 2}, real);
  if (rows == 0) return {loss, el2n, margin, correct, stats};

  const Launcher launch(input);
  for_floating(input.scalar_type(), [&]<typename T>(T) {
    using Real = Compute<T>;
    const Forward<T> f{input.const_data_ptr<T>(),
                       target.const_data_ptr<int64_t>(),
                       weight ? weight->const_data_ptr<Real>() : nullptr,
                       rows,
                       input.stride(0),
                       classes,
                       ignore_index,
                       label_smoothing,
                       loss.mutable_data_ptr<Real>(),
                       stats.mutable_data_ptr<Real>(),
                       el2n.mutable_data_ptr<float>(),
                       margin.mutable_data_ptr<float>(),
                       correct.mutable_data_ptr<float>()};
    for_lanes(classes, [&](auto lanes) {
      launch(forward_rows<T, lanes()>, blocks_for<lanes()>(rows), kThreads<lanes()>, f);
    });
  });
  return {loss, el2n, margin, correct, stats};
}

Tensor backward_cuda(Tensor grad_loss, Tensor input, Tensor target, Tensor softmax_stats,
                     std::optional<Tensor> weight, double label_smoothing, int64_t ignore_index) {
  const char* op = "scored_cross_entropy_backward";
  check_arguments(op, input, target, weight, label_smoothing);
  check_backward_arguments(op, grad_loss, input, softmax_stats);
  input = with_unit_column_stride(input);
  const int64_t rows = input.size(0), classes = input.size(1);
  Tensor grad_input = torch::stable::new_empty(input, {rows, classes});
  if (rows == 0) return grad_input;

  const Launcher launch(input);
  for_floating(input.scalar_type(), [&]<typename T>(T) {
    using Real = Compute<T>;
    const Backward<T> b{input.const_data_ptr<T>(),
                        target.const_data_ptr<int64_t>(),
                        weight ? weight->const_data_ptr<Real>() : nullptr,
                        softmax_stats.const_data_ptr<Real>(),
                        grad_loss.const_data_ptr<Real>(),
                        rows,
                        input.stride(0),
                        classes,
                        ignore_index,
                        label_smoothing,
                        grad_input.mutable_data_ptr<T>()};
    for_lanes(classes, [&](auto lanes) {
      launch(backward_rows<T, lanes()>, blocks_for<lanes()>(rows), kThreads<lanes()>, b);
    });
  });
  return grad_input;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("scored_cross_entropy", TORCH_BOX(&forward_cuda));
  m.impl("scored_cross_entropy_backward", TORCH_BOX(&backward_cuda));
}

}  // namespace cpfast::scored_cross_entropy
