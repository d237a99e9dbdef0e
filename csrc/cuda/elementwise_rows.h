// The passes over the elements of all rows, of the losses that are means over them.
#pragma once

#include "../elementwise_loss.h"

#include "device.h"
#include "launch.h"

#include <initializer_list>
#include <tuple>

namespace cpfast::record_scores {
void record_cuda(Tensor scores, Tensor index, Tensor values);
}

namespace cpfast::elementwise_loss {

// Lanes that share a row: few where a row has few elements, or most of them would be idle.
inline constexpr int kFewLanes = 8, kStreamLanes = 512;

template <int kLanes>
constexpr int kThreads = kLanes > 256 ? kLanes : 256;

// A row is split among blocks, by the number of rows and their length alone, where there are too
// few of them to keep a device busy. (Not measured.)
inline constexpr int64_t kSplitElements = 16384, kMaxParts = 132 * 8;

inline int64_t splits_of(int64_t rows, int64_t elements) {
  return std::clamp<int64_t>(kMaxParts / rows, 1, std::max<int64_t>(1, elements / kSplitElements));
}

template <typename T, typename U>
struct Batch : Rows<T, U> {
  using R = Real<T>;

  Reduction reduction;
  int64_t splits;
  Sums<R>* parts;  // [count, splits], where there is more than one split
  double* sums;    // of losses: a part a block, or a row where rows are split
  int64_t sum_count;
  double factor;     // of the reduced loss
  R* reduced;        // []
  unsigned* ticket;  // zero, of more than one block; null where there is nothing to finish
};

template <typename R>
__device__ Sums<R> no_sums() {
  return {0, 0, -kLowest<R>, 0};
}

// Adds an element to the sums of a vector, and returns the derivative of its loss (half of it, of
// mse); `linear` is that of the larger parts of the losses, in shares.
template <Loss kLoss, typename R>
__device__ R add(R x, R t, R pos_weight, R& linear, R& log, R& squares, Sums<R>& sums) {
  if constexpr (kLoss == Loss::kMse) {
    const R residual = x - t;
    squares += residual * residual;
    return residual;
  } else {
    if (!(t >= 0 && t <= 1)) t = kNaN<R>;
    const R size = fabs(x), e = exp(-size), larger = 1 / (1 + e), smaller = e * larger;
    const R yes = x > 0 ? larger : smaller, no = x > 0 ? smaller : larger;
    const R negative = 1 - t, positive = pos_weight * t, factor = x > 0 ? negative : positive;
    // An infinite logit that the target agrees with costs nothing.
    if (factor != 0) linear += factor * (size * static_cast<R>(kShare));
    log += (negative + positive) * log1p(e);
    const R residual = (negative * yes - t * no) * static_cast<R>(kMultiple<kLoss, R>);
    squares += residual * residual;
    sums.least = fmin(sums.least, t >= R(.5) ? x : -x);
    sums.wrong |= (t >= R(.5)) != (x > 0);
    return negative * yes - positive * no;
  }
}

// The elements [begin, end) of a row that a lane has. Which they are depends on their indices
// alone, not on their addresses.
template <Loss kLoss, int kLanes, typename T, typename U>
__device__ Sums<Real<T>> part_of_row(const Rows<T, U>& f, int64_t row, int lane, int64_t begin,
                                     int64_t end) {
  using R = Real<T>;
  constexpr int kVector = kWidth<T>;
  const T* x = f.input + row * f.input_stride;
  const U* t = f.target + row * f.target_stride;
  T* grad = f.grad ? f.grad + row * f.elements : nullptr;
  const R g = grad ? f.gradient_factor(row) : R(0);
  const bool aligned = is_aligned(x + begin) && is_aligned(t + begin);
  Sums<R> sums = no_sums<R>();
  const auto weight = [&](int64_t i) { return f.pos_weight ? f.pos_weight[i] : R(1); };
  const auto flush = [&](R linear, R log, R squares) {
    if constexpr (kLoss != Loss::kMse) sums.loss += linear / kShare + log;
    sums.squares += squares;
  };
  const int64_t whole = begin + (end - begin) / kVector * kVector;
#pragma unroll 1
  for (int64_t i = begin + int64_t{lane} * kVector; i < whole; i += kLanes * kVector) {
    R values[kVector], targets[kVector];
    if (aligned) {
      load<true>(x + i, values);
      load<true>(t + i, targets);
    } else {
      load<false>(x + i, values);
      load<false>(t + i, targets);
    }
    R linear = 0, log = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < kVector; ++k)
      values[k] =
          g * add<kLoss, R>(values[k], targets[k], weight(i + k), linear, log, squares, sums);
    flush(linear, log, squares);
    if (grad == nullptr) continue;
    if (is_aligned(grad + i)) {
      store(grad + i, values);
    } else {
#pragma unroll
      for (int k = 0; k < kVector; ++k) grad[i + k] = static_cast<T>(values[k]);
    }
  }
#pragma unroll 1
  for (int64_t i = whole + lane; i < end; i += kLanes) {
    R linear = 0, log = 0, squares = 0;
    const R derivative = add<kLoss, R>(static_cast<R>(x[i]), static_cast<R>(t[i]), weight(i),
                                       linear, log, squares, sums);
    flush(linear, log, squares);
    if (grad) grad[i] = static_cast<T>(g * derivative);
  }
  if constexpr (kLoss == Loss::kMse) sums.loss = sums.squares;
  return sums;
}

template <typename R>
__device__ void merge(Sums<R>& sums, const Sums<R>& other) {
  sums.loss += other.loss;
  sums.squares += other.squares;
  sums.least = fmin(sums.least, other.least);
  sums.wrong |= other.wrong;
}

// Leaves the sums of kLanes neighbouring lanes in each of them.
template <int kLanes, typename R>
__device__ void merge_lanes(Sums<R>& sums) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    merge<R>(sums,
             {__shfl_xor_sync(kAllLanes, sums.loss, offset),
              __shfl_xor_sync(kAllLanes, sums.squares, offset),
              __shfl_xor_sync(kAllLanes, sums.least, offset),
              __shfl_xor_sync(kAllLanes, sums.wrong, offset)});
}

// Leaves the sums of a block's warps in its first thread. Every warp must have merged its lanes.
template <int kWarps, typename R>
__device__ void merge_warps(Sums<R>& sums) {
  __shared__ Sums<R> warps[kWarps];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 1; i < kWarps; ++i) merge<R>(sums, warps[i]);
}

// Writes a row, and returns its loss; runs in one thread.
template <Loss kLoss, typename T, typename U>
__device__ Real<T> write_row(const Rows<T, U>& f, int64_t row, const Sums<Real<T>>& sums) {
  using R = Real<T>;
  const R loss = static_cast<R>(sums.loss / static_cast<double>(f.elements));
  const bool is_nan = loss != loss;
  const float scores[4] = {
      static_cast<float>(loss),
      is_nan ? kNaN<float> : static_cast<float>(sqrt(sums.squares) / kMultiple<kLoss, R>),
      is_nan ? kNaN<float> : static_cast<float>(sums.least), is_nan || sums.wrong ? 0.0f : 1.0f};
#pragma unroll
  for (int s = 0; s < kScores<kLoss>; ++s) f.scores[s * f.count + row] = scores[s + 1];
  if (f.recorded) {
    float value = scores[0];
#pragma unroll
    for (int s = 1; s <= kScores<kLoss>; ++s)
      if (s == static_cast<int>(f.score)) value = scores[s];
    f.recorded[row] = value;
  }
  const R weighted = f.weight ? f.weight[row] * loss : loss;
  if (f.loss) f.loss[row] = weighted;
  return weighted;
}

// What the last block does with all rows.
template <Loss kLoss, int kThreads, typename T, typename U>
__device__ void finish(const Batch<T, U>& f) {
  using R = Real<T>;
  if (f.splits > 1) {
    for (int64_t row = threadIdx.x / 32; row < f.count; row += kThreads / 32) {
      Sums<R> sums = no_sums<R>();
      for (int64_t i = threadIdx.x % 32; i < f.splits; i += 32)
        merge<R>(sums, f.parts[row * f.splits + i]);
      merge_lanes<32>(sums);
      if (threadIdx.x % 32 == 0) {
        const R loss = write_row<kLoss>(f, row, sums);
        if (f.sums) f.sums[row] = loss;
      }
      __syncwarp();
    }
    __syncthreads();
  }
  if (f.reduction == Reduction::kNone) return;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < f.sum_count; i += kThreads) sum += __ldcg(f.sums + i);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *f.reduced = static_cast<R>(sum * f.factor);
}

// The forward pass, with or without the gradient, and the backward pass, without the sums.
template <Loss kLoss, bool kSums, int kLanes, typename T, typename U>
__global__ void __launch_bounds__(kThreads<kLanes>)
    all_rows(const __grid_constant__ Batch<T, U> f) {
  using R = Real<T>;
  constexpr int kBlock = kThreads<kLanes>;
  int lane = threadIdx.x;
  int64_t row, begin = 0, end = f.elements;
  if constexpr (kLanes == kStreamLanes) {
    // A multiple of 16 bytes long.
    const int64_t part = ((f.elements + f.splits - 1) / f.splits + 15) / 16 * 16;
    row = blockIdx.x / f.splits;
    begin = min(f.elements, blockIdx.x % f.splits * part);
    end = min(f.elements, begin + part);
  } else {
    lane %= kLanes;
    row = int64_t{blockIdx.x} * (kBlock / kLanes) + threadIdx.x / kLanes;
  }
  Sums<R> sums = no_sums<R>();
  if (row < f.count) sums = part_of_row<kLoss, kLanes>(f, row, lane, begin, end);
  if constexpr (kSums) {
    merge_lanes<(kLanes < 32 ? kLanes : 32)>(sums);
    if constexpr (kLanes > 32) merge_warps<kLanes / 32>(sums);
    if (f.splits > 1) {
      if (threadIdx.x == 0) f.parts[blockIdx.x] = sums;
    } else {
      const double loss = lane == 0 && row < f.count ? double{write_row<kLoss>(f, row, sums)} : 0.0;
      if (f.reduction != Reduction::kNone) {
        const double sum = block_sum<kBlock>(loss);
        if (threadIdx.x == 0) f.sums[blockIdx.x] = sum;
      }
    }
    if (f.ticket && is_last_block(f.ticket)) finish<kLoss, kBlock>(f);
  }
}

template <Loss kLoss, bool kSums, typename T, typename U>
void launch_rows(const Launcher& launch, Batch<T, U> f, const Tensor& like) {
  using R = Real<T>;
  const bool reduces = kSums && f.reduction != Reduction::kNone;
  const auto run = [&]<int kLanes>(std::integral_constant<int, kLanes>) {
    constexpr int64_t kRows = kThreads<kLanes> / kLanes;
    f.splits = kLanes == kStreamLanes ? splits_of(f.count, f.elements) : 1;
    const int64_t blocks = f.splits * ((f.count + kRows - 1) / kRows);
    const int64_t parts = kSums && f.splits > 1 ? blocks : 0;
    f.sum_count = !reduces ? 0 : f.splits > 1 ? f.count : blocks;
    const int64_t part_bytes = parts * static_cast<int64_t>(sizeof(Sums<R>)),
                  sum_bytes = f.sum_count * static_cast<int64_t>(sizeof(double));
    Tensor memory = torch::stable::new_empty(
        like, {part_bytes + sum_bytes + static_cast<int64_t>(sizeof(double))}, ScalarType::Byte);
    char* const at = static_cast<char*>(memory.mutable_data_ptr());
    f.parts = reinterpret_cast<Sums<R>*>(at);
    f.sums = reduces ? reinterpret_cast<double*>(at + part_bytes) : nullptr;
    f.ticket = nullptr;
    if (reduces || parts > 0) {
      f.ticket = reinterpret_cast<unsigned*>(at + part_bytes + sum_bytes);
      if (blocks > 1) launch.zero(f.ticket, sizeof(unsigned));
    }
    launch(all_rows<kLoss, kSums, kLanes, T, U>, blocks, kThreads<kLanes>, f);
  };
  if (f.elements <= 4) return run(std::integral_constant<int, 1>{});
  if (f.elements <= 64) return run(std::integral_constant<int, kFewLanes>{});
  if (f.elements <= 2048) return run(std::integral_constant<int, 32>{});
  run(std::integral_constant<int, kStreamLanes>{});
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
  input = with_rows(input);
  target = with_rows(target);
  const int64_t rows = input.size(0);
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(input, shape, dtype);
  };
  const ScalarType real = compute_dtype(input);
  const bool reduces = reduction != 0;
  const bool is_mean = reduction == static_cast<int64_t>(Reduction::kMean);
  Tensor loss = reduces ? empty({}, real) : empty({rows}, real);
  Tensor scores = empty({kScores<kLoss>, rows}, ScalarType::Float);
  if (rows == 0) {
    if (reduces) torch::stable::fill_(loss, is_mean ? std::nan("") : 0.0);
    return {loss, scores};
  }
  Tensor recorded = empty({table ? rows : 0}, ScalarType::Float);
  const Launcher launch(input);
  for_dtypes(input, target, [&]<typename T, typename U>(T, U) {
    using R = Real<T>;
    Batch<T, U> f{rows_of<kLoss, T, U>(input, target, weight, pos_weight, reduction)};
    f.loss = reduces ? nullptr : loss.mutable_data_ptr<R>();
    f.scores = scores.mutable_data_ptr<float>();
    f.recorded = table ? recorded.mutable_data_ptr<float>() : nullptr;
    f.score = static_cast<Score>(score);
    f.grad = grad ? grad->mutable_data_ptr<T>() : nullptr;
    f.reduction = static_cast<Reduction>(reduction);
    f.factor = is_mean ? 1 / static_cast<double>(rows) : 1;
    f.reduced = loss.mutable_data_ptr<R>();
    launch_rows<kLoss, true>(launch, f, input);
  });
  // One launch more, which is less than what the last block would need for a thousand samples.
  // (Not measured.)
  if (table) record_scores::record_cuda(*table, *index, recorded);
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
  if (input.size(0) == 0) return grad_input;
  const Launcher launch(input);
  for_dtypes(input, target, [&]<typename T, typename U>(T, U) {
    Batch<T, U> f{rows_of<kLoss, T, U>(input, target, weight, pos_weight, reduction)};
    f.grad_loss = grad_loss.const_data_ptr<Real<T>>();
    f.grad = grad_input.mutable_data_ptr<T>();
    launch_rows<kLoss, false>(launch, f, input);
  });
  return grad_input;
}

}  // namespace cpfast::elementwise_loss
