#include "../scored_cross_entropy.h"

#include "finish_batch.h"
#include "launch.h"
#include "row_gradient.h"
#include "row_sums.h"

#include <algorithm>
#include <initializer_list>
#include <tuple>

namespace cpfast::scored_cross_entropy {
namespace {

// Up to so many classes a lane stay in its registers from the logits to the gradient; longer rows
// are streamed, and read again for the gradient, from the L2 cache.
template <typename T, int kLanes>
constexpr int kHeld = kLanes == kFewLanes ? 8 : std::is_same_v<T, double> ? 16 : 32;

// Of rows that are read again, so many bytes may be under way at a time: they must stay in L2.
constexpr int64_t kStreamedBytes = 32 << 20;

// The last block records up to so many rows, for others would need more launches. (Not measured.)
constexpr int64_t kFinishedRows = 4096;

template <typename T>
struct Forward : Rows<T> {
  Batch<T> batch;
  Real<T>* splits;  // [count, 3]: max, s1 and exp(x_y - max), which gradients of split rows need

  __device__ Real<T> scale() const {
    if (batch.reduction != Reduction::kMean) return 1;
    return batch.factor ? *batch.factor : 1 / static_cast<Real<T>>(this->count);
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

// Writes a row that counts, and returns its loss; leaves the largest logit and s1 relative to it.
template <typename T>
__device__ Real<T> write_sums(const Rows<T>& f, int64_t row, Real<T> x_y,
                           const RowSums<Real<T>>& others, Real<T>& max, Real<T>& s1) {
  using R = Real<T>;
  max = fmax(others.max, x_y);
  const R gap = others.max == max ? R(1) : exp(others.max - max);
  s1 = static_cast<R>(others.s1 * gap);
  const R e_y = exp(x_y - max), z = s1 + e_y;
  const R nll = x_y >= max ? log1p(s1 / e_y) : (max - x_y) + log(z);
  const bool is_nan = nll != nll;
  double value = nll;
  if (f.smoothing > 0) {
    // The mean of lse - x_j, by differences. A masked target has an infinite loss.
    const double smooth = isinf(nll) ? nll : nll - others.total / f.classes;
    value = (1 - f.smoothing) * nll + f.smoothing * smooth;
  }
  // sqrt(s2 + s1^2) with s1 taken out, so that s2 of a confident row does not underflow.
  const R ratio =
      static_cast<R>(others.s2) / static_cast<R>(others.s1) / static_cast<R>(others.s1);
  const R p = s1 / z, loss = static_cast<R>(f.weight ? f.weight[row] * value : value);
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

constexpr int kRecordThreads = 256;

// More rows than one block should look at.
template <typename T>
__global__ void __launch_bounds__(kRecordThreads, 1)
    score_all_sequences(const __grid_constant__ Forward<T> f) {
  constexpr int kWarps = kRecordThreads / 32;
  score_sequences(f, f.batch.sequences, int64_t{blockIdx.x} * kWarps + threadIdx.x / 32,
                  int64_t{gridDim.x} * kWarps);
}

template <typename T>
__global__ void __launch_bounds__(kRecordThreads, 1)
    record_sequences(const __grid_constant__ Forward<T> f, int64_t first, int64_t end, Step step) {
  const int64_t i = first + int64_t{blockIdx.x} * kRecordThreads + threadIdx.x;
  if (i >= end) return;
  if (step == Step::kClear) check_index(f.batch, i);
  record(f, f.batch, i, i - first, step);
}

constexpr int kCountThreads = 1024;

// The factor of the mean, for gradients that are computed before the losses are known.
template <typename T>
__global__ void __launch_bounds__(kCountThreads)
    count_targets(const int64_t* target, int64_t rows, int64_t ignore_index, Real<T>* factor) {
  int64_t counted = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kCountThreads)
    counted += target[row] != ignore_index;
  counted = block_sum<kCountThreads>(counted);
  if (threadIdx.x == 0) *factor = static_cast<Real<T>>(1 / static_cast<double>(counted));
}

// Rows that a block's lanes hold: every logit is read once and has one exponential.
template <typename T, int kLanes, bool kGrad>
__global__ void __launch_bounds__(kThreads<kLanes>, 1)
    forward_held(const __grid_constant__ Forward<T> f) {
  using R = Real<T>;
  constexpr int kVector = kWidth<T>, kVectors = kHeld<T, kLanes> / kVector;
  static_assert(kVector <= kLanes);
  const int lane = threadIdx.x % kLanes;
  const int64_t row = int64_t{blockIdx.x} * (kThreads<kLanes> / kLanes) + threadIdx.x / kLanes;
  const int64_t target = row < f.count ? f.target[row] : f.ignore_index;
  const bool counts = target != f.ignore_index && target >= 0 && target < f.classes;
  // A row that does not count has no classes, but its lanes must be there to merge.
  const int64_t classes = counts ? f.classes : 0;
  const bool with_total = f.smoothing > 0;
  const T* x = f.input + (counts ? f.at(row) : 0);
  const R x_y = counts ? static_cast<R>(x[target]) : R(0);

  // Which lane adds which classes depends on their indices alone, not on their addresses.
  RowSums<R> sums;
  const int64_t vectors = classes / kVector;
  const int64_t last_at[1] = {vectors * kVector + lane};
  R last[1][1] = {{last_at[0] < classes ? static_cast<R>(x[last_at[0]]) : kLowest<R>}};
  R held[kVectors][kVector];
  int64_t at[kVectors];
#pragma unroll
  for (int u = 0; u < kVectors; ++u) {
    const int64_t v = lane + int64_t{u} * kLanes;
    at[u] = v < vectors ? v * kVector : classes;
  }
  const auto load_all = [&]<bool kAligned>(std::bool_constant<kAligned>) {
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      if (at[u] < classes) {
        load<kAligned>(x + at[u], held[u]);
      } else {
#pragma unroll
        for (int k = 0; k < kVector; ++k) held[u][k] = kLowest<R>;
      }
    }
  };
  if (is_aligned(x))
    load_all(std::true_type{});
  else
    load_all(std::false_type{});
  const int64_t own = counts ? target : -1;  // an ignored one may be any number
  sums.observe(last, last_at, own, classes, with_total, x_y);
  sums.observe(held, at, own, classes, with_total, x_y);
  const R shift = sums.settle(), lane_max = sums.max;
  sums.add(last, shift);
  sums.add(held, shift);

  sums.template merge_lanes<(kLanes < 32 ? kLanes : 32)>(with_total);
  if constexpr (kLanes > 32) sums.template merge_warps<kLanes / 32>(with_total);
  RowGradient<R> g = {};
  double loss = 0;
  if (counts && (kLanes <= 32 || threadIdx.x < 32)) {
    R max = fmax(sums.max, x_y), s1 = 0;
    if (lane == 0) {
      loss = write_sums<T>(f, row, x_y, sums, max, s1);
      write_stats<T>(f, row, max, s1);
    }
    if constexpr (kGrad) {
      // Every lane knows the sums, which is less than passing on what one lane makes of them.
      s1 = static_cast<R>(sums.s1 * (sums.max == max ? R(1) : exp(sums.max - max)));
      g = gradient_of<T>(f, row_weight<T>(f, row, f.scale()), max, s1, exp(x_y - max));
    }
  } else if (!counts && lane == 0 && row < f.count) {
    loss = write_without_target<T>(f, row);
  }
  if constexpr (kGrad) {
    if constexpr (kLanes > 32) {
      __shared__ RowGradient<R> known;
      if (threadIdx.x == 0) known = g;
      __syncthreads();
      g = known;
    }
    if (counts) {
      T* grad = f.grad + f.grad_at(row);
      // Nothing was added where there is no largest logit, and exp(0 - max) may be infinite; but
      // NaN must pass.
      const R factor = (lane_max == kLowest<R> ? R(0) : exp(lane_max - g.max)) * g.per_sum;
      const bool aligned = is_aligned(grad);
#pragma unroll
      for (int u = 0; u < kVectors; ++u) {
        if (at[u] >= classes) continue;
        R values[kVector];
#pragma unroll
        for (int k = 0; k < kVector; ++k)
          values[k] = at[u] + k == target ? g.at_target : held[u][k] * factor - g.smooth;
        if (aligned) {
          store(grad + at[u], values);
        } else {
#pragma unroll
          for (int k = 0; k < kVector; ++k) grad[at[u] + k] = static_cast<T>(values[k]);
        }
      }
      if (last_at[0] < classes)
        grad[last_at[0]] = static_cast<T>(
            last_at[0] == target ? g.at_target : last[0][0] * factor - g.smooth);
    } else if (row < f.count) {
      fill_gradient<T, kLanes>(f, row, lane, 0, f.classes);
    }
  }
  if (f.batch.reduction != Reduction::kNone) {
    const bool adds = lane == 0 && row < f.count && target != f.ignore_index;
    const double sum = block_sum<kThreads<kLanes>>(loss);
    const double counted = block_sum<kThreads<kLanes>>(adds ? 1.0 : 0.0);
    if (threadIdx.x == 0) write_part(f.batch, blockIdx.x, sum, counted);
  }
  if (f.batch.ticket && is_last_block(f.batch.ticket))
    finish_batch<kThreads<kLanes>, T>(f, f.batch);
}

// The sums over the classes [begin, end) of a row, in the first warp of the block.
template <typename T>
__device__ RowSums<Real<T>> stream_row(const Rows<T>& f, const T* x, int64_t target, Real<T> x_y,
                                       int64_t begin, int64_t end) {
  using R = Real<T>;
  constexpr int kVector = kWidth<T>, kVectors = kUnroll;
  const bool with_total = f.smoothing > 0;
  const int lane = threadIdx.x;
  RowSums<R> sums;
  const int64_t vectors = (end - begin) / kVector;
  {
    const int64_t at[1] = {begin + vectors * kVector + lane};
    R last[1][1] = {{at[0] < end ? static_cast<R>(x[at[0]]) : kLowest<R>}};
    sums.observe(last, at, target, end, with_total, x_y);
    sums.add(last, sums.settle());
  }
  const auto add_vectors = [&]<bool kAligned>(std::bool_constant<kAligned>) {
    for (int64_t v = lane; v < vectors; v += kVectors * kStreamLanes) {
      R logits[kVectors][kVector];
      int64_t at[kVectors];
#pragma unroll
      for (int u = 0; u < kVectors; ++u) {
        const bool inside = v + u * kStreamLanes < vectors;
        at[u] = inside ? begin + (v + u * kStreamLanes) * kVector : end;
        if (inside) {
          load<kAligned>(x + at[u], logits[u]);
        } else {
#pragma unroll
          for (int k = 0; k < kVector; ++k) logits[u][k] = kLowest<R>;
        }
      }
      sums.observe(logits, at, target, end, with_total, x_y);
      sums.add(logits, sums.settle());
    }
  };
  if (is_aligned(x + begin))
    add_vectors(std::true_type{});
  else
    add_vectors(std::false_type{});
  sums.template merge_lanes<32>(with_total);
  sums.template merge_warps<kStreamLanes / 32>(with_total);
  return sums;
}

// Longer rows, one after the other: few enough at a time that the gradient finds them in L2.
template <typename T, bool kGrad>
__global__ void __launch_bounds__(kStreamLanes, 1)
    forward_streamed(const __grid_constant__ Forward<T> f) {
  using R = Real<T>;
  __shared__ RowGradient<R> known;
  for (int64_t row = blockIdx.x; row < f.count; row += gridDim.x) {
    const int64_t target = f.target[row];
    const bool counts = target != f.ignore_index && target >= 0 && target < f.classes;
    if (counts) {
      const T* x = f.input + f.at(row);
      const R x_y = static_cast<R>(x[target]);
      const RowSums<R> sums = stream_row<T>(f, x, target, x_y, 0, f.classes);
      if (threadIdx.x == 0) {
        R max, s1;
        write_part(f.batch, row, write_sums<T>(f, row, x_y, sums, max, s1), 1);
        write_stats<T>(f, row, max, s1);
        if constexpr (kGrad)
          known = gradient_of<T>(f, row_weight<T>(f, row, f.scale()), max, s1, exp(x_y - max));
      }
    } else if (threadIdx.x == 0) {
      write_part(f.batch, row, write_without_target<T>(f, row), target != f.ignore_index);
    }
    __syncthreads();
    if constexpr (kGrad) {
      if (counts)
        write_gradient<T, kStreamLanes>(f, row, threadIdx.x, 0, f.classes, RowGradient<R>(known));
      else
        fill_gradient<T, kStreamLanes>(f, row, threadIdx.x, 0, f.classes);
      __syncthreads();  // before the next row's is known
    }
  }
  if (f.batch.ticket && is_last_block(f.batch.ticket)) finish_batch<kStreamLanes, T>(f, f.batch);
}

template <typename T>
__global__ void __launch_bounds__(kStreamLanes, 1)
    sum_splits(const __grid_constant__ Forward<T> f, int64_t splits, RowSums<Real<T>>* parts) {
  using R = Real<T>;
  const Split split(splits, f.classes);
  const int64_t target = f.target[split.row];
  if (target < 0 || target >= f.classes || target == f.ignore_index) return;
  const T* x = f.input + f.at(split.row);
  const RowSums<R> sums =
      stream_row<T>(f, x, target, static_cast<R>(x[target]), split.begin, split.end);
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
}

// A warp a row, a lane a part of it.
template <typename T>
__global__ void __launch_bounds__(32)
    merge_splits(const __grid_constant__ Forward<T> f, int64_t splits,
                 const RowSums<Real<T>>* parts) {
  using R = Real<T>;
  const int64_t row = blockIdx.x, target = f.target[row];
  if (target != f.ignore_index && target >= 0 && target < f.classes) {
    RowSums<R> sums;
    if (threadIdx.x < splits) sums = parts[row * splits + threadIdx.x];
    sums.template merge_lanes<32>(f.smoothing > 0);
    if (threadIdx.x == 0) {
      const R x_y = static_cast<R>(f.input[f.at(row) + target]);
      R max, s1;
      write_part(f.batch, row, write_sums<T>(f, row, x_y, sums, max, s1), 1);
      write_stats<T>(f, row, max, s1);
      if (f.splits) {
        f.splits[3 * row] = max;
        f.splits[3 * row + 1] = s1;
        f.splits[3 * row + 2] = exp(x_y - max);
      }
    }
  } else if (threadIdx.x == 0) {
    write_part(f.batch, row, write_without_target<T>(f, row), target != f.ignore_index);
  }
  if (f.batch.ticket && is_last_block(f.batch.ticket)) finish_batch<32, T>(f, f.batch);
}

// Does not read the target's logit, which the gradient may be written over by another block.
template <typename T>
__global__ void __launch_bounds__(kStreamLanes, 1)
    gradient_of_splits(const __grid_constant__ Forward<T> f, int64_t splits) {
  const Split split(splits, f.classes);
  const int64_t row = split.row, target = f.target[row];
  if (target == f.ignore_index || target < 0 || target >= f.classes) {
    fill_gradient<T, kStreamLanes>(f, row, threadIdx.x, split.begin, split.end);
    return;
  }
  const Real<T>* known = f.splits + 3 * row;
  write_gradient<T, kStreamLanes>(
      f, row, threadIdx.x, split.begin, split.end,
      gradient_of<T>(f, row_weight<T>(f, row, f.scale()), known[0], known[1], known[2]));
}

// Runs held(lanes), or returns false where a row is too long for that.
template <typename T, typename Held>
bool for_held(int64_t classes, const Held& held) {
  const auto fits = [&]<int kLanes>(std::integral_constant<int, kLanes> lanes) {
    if (classes > kLanes * kHeld<T, kLanes>) return false;
    held(lanes);
    return true;
  };
  return fits(std::integral_constant<int, kFewLanes>{}) || fits(std::integral_constant<int, 32>{}) ||
      fits(std::integral_constant<int, 256>{}) || fits(std::integral_constant<int, kStreamLanes>{});
}

template <typename T>
void launch_record(const Launcher& launch, const Forward<T>& f) {
  const int64_t sequences = f.batch.sequences;
  const auto blocks = [](int64_t threads) { return (threads + kRecordThreads - 1) / kRecordThreads; };
  if (f.at.tokens > 1)
    launch(score_all_sequences<T>, blocks(32 * sequences), kRecordThreads, f);
  for (int64_t first = 0; first < sequences; first += kMaxClaims) {
    const int64_t end = std::min(sequences, first + kMaxClaims);
    for (const Step step : {Step::kClear, Step::kClaim, Step::kFill})
      launch(record_sequences<T>, blocks(end - first), kRecordThreads, f, first, end, step);
  }
}

template <typename T>
void launch_forward(const Launcher& launch, Forward<T>& f, const Tensor& like) {
  // The parts of a batch, where there is a reduction.
  std::optional<Tensor> kept;
  const auto with_parts = [&](int64_t parts) {
    if (f.batch.reduction == Reduction::kNone) return;
    kept = torch::stable::new_empty(like, {2, parts}, ScalarType::Double);
    f.batch.sums = kept->mutable_data_ptr<double>();
    f.batch.counts = f.batch.sums + parts;
    f.batch.parts = parts;
  };
  const auto run = [&]<bool kGrad>(std::bool_constant<kGrad>) {
    if (for_held<T>(f.classes, [&](auto lanes) {
          const int64_t blocks = blocks_for<lanes()>(f.count);
          with_parts(blocks);
          launch(forward_held<T, lanes(), kGrad>, blocks, kThreads<lanes()>, f);
        }))
      return;
    with_parts(f.count);
    const int64_t splits = splits_of(f.count, f.classes);
    if (splits == 1) {
      const int64_t resident = launch.resident_blocks(forward_streamed<T, kGrad>, kStreamLanes),
                    fit = kGrad ? std::max<int64_t>(1, kStreamedBytes / (f.classes * sizeof(T)))
                                : f.count;
      launch(forward_streamed<T, kGrad>, std::min({f.count, resident, fit}), kStreamLanes, f);
      return;
    }
    Tensor parts = torch::stable::new_empty(
        like, {f.count * splits * static_cast<int64_t>(sizeof(RowSums<Real<T>>))},
        ScalarType::Byte);
    auto* const sums = static_cast<RowSums<Real<T>>*>(parts.mutable_data_ptr());
    launch(sum_splits<T>, f.count * splits, kStreamLanes, f, splits, sums);
    launch(merge_splits<T>, f.count, 32, f, splits, sums);
    if constexpr (kGrad)
      launch(gradient_of_splits<T>, f.count * splits, kStreamLanes, f, splits);
  };
  if (f.grad)
    run(std::true_type{});
  else
    run(std::false_type{});
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward_cuda(
    Tensor input, Tensor target, std::optional<Tensor> weight, double label_smoothing,
    int64_t ignore_index, int64_t reduction, std::optional<Tensor> grad,
    std::optional<Tensor> table, std::optional<Tensor> index, int64_t score) {
  const char* op = "scored_cross_entropy";
  check_arguments(op, input, target, weight, label_smoothing, reduction);
  if (grad) check_grad(op, *grad, input);
  check_table(op, table, index, score, input);
  input = with_unit_column_stride(input);
  const int64_t rows = row_count(input), classes = class_count(input);
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(input, shape, dtype);
  };
  const ScalarType real = compute_dtype(input);
  const bool reduces = reduction != 0;
  Tensor loss = reduces ? empty({}, real)
                        : torch::stable::new_empty(input, target.sizes(), real);
  Tensor scores = empty({3, rows}, ScalarType::Float);
  Tensor stats = empty({grad ? 0 : rows + 1, 2}, real);
  // What the gradient of split rows waits for, and the factor of the mean.
  Tensor scratch = empty({grad ? 3 * rows + 1 : 0}, real);
  Tensor recorded = empty({table ? rows : 0}, ScalarType::Float);
  Tensor ticket = empty({1}, ScalarType::Int);
  const bool is_mean = reduction == static_cast<int64_t>(Reduction::kMean);
  // No sample has this target: rows need no counting before their gradients.
  const bool all_count = ignore_index == std::numeric_limits<int64_t>::min();
  if (rows == 0) {
    if (reduces) torch::stable::fill_(loss, is_mean ? std::nan("") : 0.0);
    return {loss, scores, stats};
  }

  const Launcher launch(input);
  for_floating(input.scalar_type(), [&]<typename T>(T) {
    using R = Real<T>;
    Forward<T> f{{input.const_data_ptr<T>(), Layout(input), target.const_data_ptr<int64_t>(),
                  weight ? weight->const_data_ptr<R>() : nullptr, rows, classes, ignore_index,
                  label_smoothing, reduces ? nullptr : loss.mutable_data_ptr<R>(),
                  grad ? nullptr : stats.mutable_data_ptr<R>(), scores.mutable_data_ptr<float>(),
                  table ? recorded.mutable_data_ptr<float>() : nullptr, static_cast<Score>(score),
                  grad ? grad->mutable_data_ptr<T>() : nullptr, Layout(grad ? *grad : input)},
                 {.reduction = static_cast<Reduction>(reduction),
                  .loss = loss.mutable_data_ptr<R>(),
                  .factor = !is_mean || (grad && all_count) ? nullptr
                      : grad ? scratch.mutable_data_ptr<R>() + 3 * rows
                             : stats.mutable_data_ptr<R>() + 2 * rows,
                  .has_factor = is_mean && grad && !all_count,
                  .table = table ? table->mutable_data_ptr<float>() : nullptr,
                  .index = table ? index->const_data_ptr<int64_t>() : nullptr,
                  .samples = table ? table->size(0) : 0,
                  .sequences = input.size(0)},
                 grad ? scratch.mutable_data_ptr<R>() : nullptr};
    const bool records_apart = table && rows > kFinishedRows;
    if (records_apart) f.batch.table = nullptr;
    if (reduces || (table && !records_apart)) {
      f.batch.ticket = static_cast<unsigned*>(ticket.mutable_data_ptr());
      launch.zero(f.batch.ticket, sizeof(unsigned));
    }
    if (f.batch.has_factor)
      launch(count_targets<T>, 1, kCountThreads, f.target, rows, ignore_index, f.batch.factor);
    launch_forward(launch, f, input);
    if (records_apart) {
      f.batch.table = table->mutable_data_ptr<float>();
      launch_record(launch, f);
    }
  });
  return {loss, scores, stats};
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("scored_cross_entropy", TORCH_BOX(&forward_cuda));
}

}  // namespace cpfast::scored_cross_entropy
