#include "../scored_cross_entropy.h"

#include "finish_batch.h"
#include "forward_rows.h"
#include "launch.h"
#include "row_gradient.h"
#include "row_sums.h"
#include "soft_rows.h"
#include "strided_rows.h"

#include <algorithm>
#include <initializer_list>
#include <tuple>

namespace cpfast::scored_cross_entropy {
namespace {

// Up to so many classes a lane stay in its registers from the logits to the gradient; longer rows
// are streamed, and read again for the gradient, from the L2 cache.
template <typename T, int kLanes>
constexpr int kHeld = kLanes == kFewLanes ? 8
    : std::is_same_v<T, double>           ? 16
                                          : 32;

// The last block records up to so many rows, for others would need more launches. (Not measured.)
constexpr int64_t kFinishedRows = 4096;

// Of up to so many rows every block counts the targets itself, which is less than to wait for a
// kernel that does. (Not measured.)
constexpr int64_t kCountedRows = 4096;

constexpr int kRecordThreads = 256;

// More rows than one block should look at.
template <typename T>
__global__ void __launch_bounds__(kRecordThreads, 1)
    score_all_sequences(const __grid_constant__ Forward<T> f) {
  constexpr int kWarps = kRecordThreads / 32;
  score_sequences(f, f.batch.sequences, int64_t{blockIdx.x} * kWarps + threadIdx.x / 32,
                  int64_t{gridDim.x} * kWarps);
}

constexpr int kCountThreads = 1024;

// Few sequences of so many tokens, such as the pixels of images, have a block each.
constexpr int64_t kLongSequence = 1024;

template <typename T>
__global__ void __launch_bounds__(kCountThreads, 1)
    score_long_sequences(const __grid_constant__ Forward<T> f) {
  const int64_t tokens = f.at.tokens, first = blockIdx.x * tokens;
  double sum = 0, counted = 0;
  for (int64_t row = first + threadIdx.x; row < first + tokens; row += kCountThreads) {
    if (f.ignores(row)) continue;
    sum += f.recorded[row];
    counted += 1;
  }
  sum = block_sum<kCountThreads>(sum);
  counted = block_sum<kCountThreads>(counted);
  if (threadIdx.x != 0) return;
  f.recorded[first] = static_cast<float>(sum / counted);
  f.recorded[first + 1] = counted > 0;
}

template <typename T>
__global__ void __launch_bounds__(kRecordThreads, 1)
    record_sequences(const __grid_constant__ Forward<T> f, int64_t first, int64_t end, Step step) {
  const int64_t i = first + int64_t{blockIdx.x} * kRecordThreads + threadIdx.x;
  if (i >= end) return;
  if (step == Step::kClear) check_index(f.batch, i);
  record(f, f.batch, i, i - first, step);
}

// The factor of the mean, for gradients that are computed before the losses are known.
template <typename T>
__global__ void __launch_bounds__(kCountThreads)
    find_factor(const __grid_constant__ Rows<T> f, Real<T>* factor) {
  const double counted = count_targets<kCountThreads>(f);
  if (threadIdx.x == 0) *factor = static_cast<Real<T>>(1 / counted);
}

// kWidth logits, or as many of kLowest.
template <bool kAligned, typename T>
__device__ void load_if(bool exists, const T* from, Real<T> (&to)[kWidth<T>]) {
  constexpr unsigned kHigh = std::is_same_v<T, double> ? 0xfff00000u
      : std::is_same_v<T, float>                       ? 0xff800000u
      : std::is_same_v<T, c10::Half>                   ? 0xfc00fc00u
                                                       : 0xff80ff80u;
  constexpr unsigned kLow = std::is_same_v<T, double> ? 0 : kHigh;
  uint4 words{kLow, kHigh, kLow, kHigh};
  if (exists) words = load_words<kAligned>(from);
  T values[kWidth<T>];
  std::memcpy(values, &words, sizeof(values));
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) to[k] = static_cast<Real<T>>(values[k]);
}

// Rows that a block's lanes hold: every logit is read once and has one exponential.
// What it reads of x, all kernels here read: elements of [0, classes) and no byte beside.
template <typename T, int kLanes, bool kGrad>
__global__ void __launch_bounds__(kThreads<kLanes>, kLanes == kFewLanes ? 3 : 1)
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
  const int whole = static_cast<int>(classes) / kVector * kVector, first = lane * kVector;
  const int last_at = whole + lane;
  R last[1][1] = {{last_at < classes ? static_cast<R>(x[last_at]) : kLowest<R>}};
  R held[kVectors][kVector];
  constexpr int kStep = kLanes * kVector;
  const auto load_all = [&]<bool kAligned>(std::bool_constant<kAligned>) {
#pragma unroll
    for (int u = 0; u < kVectors; ++u)
      load_if<kAligned>(first + u * kStep < whole, x + first + u * kStep, held[u]);
  };
  if (is_aligned(x))
    load_all(std::true_type{});
  else
    load_all(std::false_type{});
  const int own = counts ? static_cast<int>(target) : -1;  // an ignored one may be any number
  sums.template observe<1>(last, last_at, own, classes, with_total, x_y);
  sums.template observe<kStep>(held, first, own, whole, with_total, x_y);
  const R shift = sums.settle(), lane_max = sums.max;
  sums.add(last, shift);
  sums.add(held, shift);

  const R scale = kGrad ? f.template scale<kThreads<kLanes>>() : R(0);
  sums.template merge_lanes<(kLanes < 32 ? kLanes : 32)>(with_total);
  if constexpr (kLanes > 32) sums.template merge_warps<kLanes / 32>(with_total);
  RowGradient<R> g = {};
  double loss = 0;
  if (counts && (kLanes <= 32 || threadIdx.x < 32)) {
    R max, s1;
    if (lane == 0) {
      loss = write_sums<T>(f, row, x_y, sums, max, s1);
      write_stats<T>(f, row, max, s1);
    }
    if constexpr (kGrad) {
      // Every lane knows the sums, which is less than passing on what one lane makes of them.
      with_target<R>(sums, x_y, max, s1);
      g = gradient_of<T>(f, row, scale, max, s1, exp(x_y - max));
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
        const int at = first + u * kStep;
        if (at >= whole) continue;
        R values[kVector];
#pragma unroll
        for (int k = 0; k < kVector; ++k)
          values[k] = at + k == own ? g.at_target : held[u][k] * factor - g.smooth;
        if (aligned) {
          store(grad + at, values);
        } else {
#pragma unroll
          for (int k = 0; k < kVector; ++k) grad[at + k] = static_cast<T>(values[k]);
        }
      }
      if (last_at < classes)
        grad[last_at] =
            static_cast<T>(last_at == own ? g.at_target : last[0][0] * factor - g.smooth);
    } else if (row < f.count) {
      fill_gradient<T, kLanes>(f, row, lane, 0, f.classes);
    }
  }
  if (f.batch.reduction != Reduction::kNone) {
    const bool adds = lane == 0 && row < f.count && target != f.ignore_index;
    const double sum = block_sum<kThreads<kLanes>>(loss);
    const double counted = block_sum<kThreads<kLanes>>(adds ? count_of(f, row) : 0.0);
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
  const int64_t whole = begin + vectors * kVector;
  {
    const int64_t at = whole + lane;
    R last[1][1] = {{at < end ? static_cast<R>(x[at]) : kLowest<R>}};
    sums.template observe<1>(last, at, target, end, with_total, x_y);
    sums.add(last, sums.settle());
  }
  constexpr int kStep = kStreamLanes * kVector;
  const auto add_vectors = [&]<bool kAligned>(std::bool_constant<kAligned>) {
    for (int64_t at = begin + lane * kVector; at < whole; at += kVectors * kStep) {
      R logits[kVectors][kVector];
      const int left = near(whole - at);
#pragma unroll
      for (int u = 0; u < kVectors; ++u)
        load_if<kAligned>(u * kStep < left, x + at + u * kStep, logits[u]);
      sums.template observe<kStep>(logits, at, target, whole, with_total, x_y);
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
__global__ void __launch_bounds__(kStreamLanes, kResident<T, kStreamLanes>)
    forward_streamed(const __grid_constant__ Forward<T> f) {
  using R = Real<T>;
  __shared__ RowGradient<R> known;
  const R scale = kGrad ? f.template scale<kStreamLanes>() : R(0);
  for (int64_t row = blockIdx.x; row < f.count; row += gridDim.x) {
    const int64_t target = f.target[row];
    const bool counts = target != f.ignore_index && target >= 0 && target < f.classes;
    if (counts) {
      const T* x = f.input + f.at(row);
      const R x_y = static_cast<R>(x[target]);
      const RowSums<R> sums = stream_row<T>(f, x, target, x_y, 0, f.classes);
      if (threadIdx.x == 0) {
        R max, s1;
        write_part(f.batch, row, write_sums<T>(f, row, x_y, sums, max, s1), count_of(f, row));
        write_stats<T>(f, row, max, s1);
        if constexpr (kGrad) known = gradient_of<T>(f, row, scale, max, s1, exp(x_y - max));
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

// The blocks of a team have a row together, and wait for each other where its sums must be known.
// All of them must run at once. Nothing of that depends on how many teams there are.
template <typename T>
struct Teams {
  int64_t splits;           // blocks of a team
  RowSums<Real<T>>* parts;  // [2, teams, splits]
  unsigned* arrived;        // [teams], zero
};

// Leaves the sums of the row in the first warp of each of the team's blocks. Parts have two places:
// while a block still reads them, others may have come to their next row, but not beyond.
template <typename T>
__device__ void merge_team(const Teams<T>& teams, unsigned turn, RowSums<Real<T>>& sums,
                           bool with_total) {
  if (threadIdx.x >= 32) return;
  const int64_t team = blockIdx.x / teams.splits, count = gridDim.x / teams.splits;
  RowSums<Real<T>>* const parts = teams.parts + (turn % 2 * count + team) * teams.splits;
  if (threadIdx.x == 0) {
    parts[blockIdx.x % teams.splits] = sums;
    __threadfence();
    atomicAdd(teams.arrived + team, 1u);
    const volatile unsigned* const arrived = teams.arrived + team;
    while (*arrived < (turn + 1) * teams.splits) __nanosleep(32);
    __threadfence();
  }
  __syncwarp();
  sums = RowSums<Real<T>>();
  if (threadIdx.x < teams.splits) sums = parts[threadIdx.x];
  sums.template merge_lanes<32>(with_total);
}

template <typename T>
__global__ void __launch_bounds__(kStreamLanes, kResident<T, kStreamLanes>)
    forward_in_teams(const __grid_constant__ Forward<T> f, const __grid_constant__ Teams<T> teams) {
  using R = Real<T>;
  __shared__ RowGradient<R> known;
  const R scale = f.template scale<kStreamLanes>();
  const Split split(teams.splits, f.classes);
  const bool writes = threadIdx.x == 0 && split.begin == 0;
  unsigned turn = 0;
  for (int64_t row = blockIdx.x / teams.splits; row < f.count; row += gridDim.x / teams.splits) {
    const int64_t target = f.target[row];
    const bool counts = target != f.ignore_index && target >= 0 && target < f.classes;
    if (counts) {
      const T* x = f.input + f.at(row);
      // Once all have come, another block may write the gradient over it.
      const R x_y = static_cast<R>(x[target]);
      RowSums<R> sums = stream_row<T>(f, x, target, x_y, split.begin, split.end);
      merge_team<T>(teams, turn++, sums, f.smoothing > 0);
      if (threadIdx.x == 0) {
        R max, s1;
        if (writes)
          write_part(f.batch, row, write_sums<T>(f, row, x_y, sums, max, s1), count_of(f, row));
        with_target<R>(sums, x_y, max, s1);
        known = gradient_of<T>(f, row, scale, max, s1, exp(x_y - max));
      }
    } else if (writes) {
      write_part(f.batch, row, write_without_target<T>(f, row), target != f.ignore_index);
    }
    __syncthreads();
    if (counts)
      write_gradient<T, kStreamLanes>(f, row, threadIdx.x, split.begin, split.end,
                                      RowGradient<R>(known));
    else
      fill_gradient<T, kStreamLanes>(f, row, threadIdx.x, split.begin, split.end);
    __syncthreads();  // before the next row's is known
  }
  if (f.batch.ticket && is_last_block(f.batch.ticket)) finish_batch<kStreamLanes, T>(f, f.batch);
}

constexpr int kMergedRows = kStreamLanes / 32;  // a block

// The same in three launches, where there is no gradient that would read a row again, or a device
// has no room for a team. And makes the next one's ticket ready.
template <typename T>
__global__ void __launch_bounds__(kStreamLanes, kResident<T, kStreamLanes>)
    sum_splits(const __grid_constant__ Forward<T> f, int64_t splits, RowSums<Real<T>>* parts) {
  using R = Real<T>;
  if (f.batch.ticket && blockIdx.x == 0 && threadIdx.x == 0) *f.batch.ticket = 0;
  const Split split(splits, f.classes);
  const int64_t row = blockIdx.x / splits, target = f.target[row];
  if (target < 0 || target >= f.classes || target == f.ignore_index) return;
  const T* x = f.input + f.at(row);
  const RowSums<R> sums =
      stream_row<T>(f, x, target, static_cast<R>(x[target]), split.begin, split.end);
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
}

// A warp a row, a lane a part of it. As many threads as forward_in_teams has, for their number is
// the order in which they add the batch.
template <typename T>
__global__ void __launch_bounds__(kStreamLanes, kResident<T, kStreamLanes>)
    merge_splits(const __grid_constant__ Forward<T> f, int64_t splits,
                 const RowSums<Real<T>>* parts) {
  using R = Real<T>;
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kMergedRows + threadIdx.x / 32;
  const int64_t target = row < f.count ? f.target[row] : f.ignore_index;
  if (target != f.ignore_index && target >= 0 && target < f.classes) {
    RowSums<R> sums;
    if (lane < splits) sums = parts[row * splits + lane];
    sums.template merge_lanes<32>(f.smoothing > 0);
    if (lane == 0) {
      const R x_y = static_cast<R>(f.input[f.at(row) + target]);
      R max, s1;
      write_part(f.batch, row, write_sums<T>(f, row, x_y, sums, max, s1), count_of(f, row));
      write_stats<T>(f, row, max, s1);
      if (f.splits) {
        f.splits[3 * row] = max;
        f.splits[3 * row + 1] = s1;
        f.splits[3 * row + 2] = exp(x_y - max);
      }
    }
  } else if (lane == 0 && row < f.count) {
    write_part(f.batch, row, write_without_target<T>(f, row), target != f.ignore_index);
  }
  if (f.batch.ticket && is_last_block(f.batch.ticket)) finish_batch<kStreamLanes, T>(f, f.batch);
}

// Does not read the target's logit, which the gradient may be written over by another block.
template <typename T>
__global__ void __launch_bounds__(kStreamLanes, kResident<T, kStreamLanes>)
    gradient_of_splits(const __grid_constant__ Forward<T> f, int64_t splits) {
  const Real<T> scale = f.template scale<kStreamLanes>();
  const Split split(splits, f.classes);
  const int64_t row = blockIdx.x / splits, target = f.target[row];
  if (target == f.ignore_index || target < 0 || target >= f.classes) {
    fill_gradient<T, kStreamLanes>(f, row, threadIdx.x, split.begin, split.end);
    return;
  }
  const Real<T>* known = f.splits + 3 * row;
  write_gradient<T, kStreamLanes>(f, row, threadIdx.x, split.begin, split.end,
                                  gradient_of<T>(f, row, scale, known[0], known[1], known[2]));
}

// Runs held(lanes), or returns false where a row is too long for that.
template <typename T, typename Held>
bool for_held(int64_t classes, const Held& held) {
  const auto fits = [&]<int kLanes>(std::integral_constant<int, kLanes> lanes) {
    if (classes > kLanes * kHeld<T, kLanes>) return false;
    held(lanes);
    return true;
  };
  return fits(std::integral_constant<int, kFewLanes>{}) ||
      fits(std::integral_constant<int, 32>{}) || fits(std::integral_constant<int, 256>{}) ||
      fits(std::integral_constant<int, kStreamLanes>{});
}

template <typename T>
void launch_record(const Launcher& launch, const Forward<T>& f) {
  const int64_t sequences = f.batch.sequences;
  const auto blocks = [](int64_t threads) {
    return (threads + kRecordThreads - 1) / kRecordThreads;
  };
  if (f.at.tokens >= kLongSequence)
    launch(score_long_sequences<T>, sequences, kCountThreads, f);
  else if (f.at.tokens > 1)
    launch(score_all_sequences<T>, blocks(32 * sequences), kRecordThreads, f);
  for (int64_t first = 0; first < sequences; first += kMaxClaims) {
    const int64_t end = std::min(sequences, first + kMaxClaims);
    for (const Step step : {Step::kClear, Step::kClaim, Step::kFill})
      launch(record_sequences<T>, blocks(end - first), kRecordThreads, f, first, end, step);
  }
}

// Pieces of one allocation, each at a multiple of 16 bytes.
struct Scratch {
  int64_t bytes = 0;

  template <typename Element>
  int64_t reserve(int64_t count) {
    const int64_t at = bytes;
    bytes += (count * static_cast<int64_t>(sizeof(Element)) + 15) / 16 * 16;
    return at;
  }
};

template <typename T>
void launch_forward(const Launcher& launch, Forward<T>& f, const Tensor& like) {
  using R = Real<T>;
  Batch<T>& batch = f.batch;
  const int64_t row_bytes = f.classes * static_cast<int64_t>(sizeof(T));
  int64_t splits = 1, teams = 0, parts = f.count;
  const bool soft = f.is_soft();
  const bool strided = !soft && (f.at.class_stride != 1 || (f.grad && f.grad_at.class_stride != 1));
  bool held = false;
  if (soft)
    for_soft_lanes(f.classes, [&](auto lanes) { parts = soft_blocks<lanes()>(f.count); });
  else if (strided)
    parts = strided_blocks(f.count);
  else
    held = for_held<T>(f.classes, [&](auto lanes) { parts = blocks_for<lanes()>(f.count); });
  if (!held && !soft && !strided) splits = splits_of(f.count, f.classes, row_bytes);
  if (splits > 1 && f.grad)
    teams = std::min({f.count, streamed_rows(row_bytes),
                      launch.resident_blocks(forward_in_teams<T>, kStreamLanes) / splits});

  float* const table = batch.table;
  const bool records_apart = table && f.count > kFinishedRows;
  if (records_apart) batch.table = nullptr;
  const bool reduces = batch.reduction != Reduction::kNone;
  const bool finishes = reduces || batch.table;
  const bool finds_factor =
      f.grad && batch.reduction == Reduction::kMean && f.count > kCountedRows && needs_counting(f);
  Scratch scratch;
  const int64_t sums = scratch.reserve<double>(reduces ? 2 * parts : 0);
  const int64_t split_sums = scratch.reserve<RowSums<R>>(splits == 1     ? 0
                                                             : teams > 0 ? 2 * teams * splits
                                                                         : f.count * splits);
  const int64_t split_gradients =
      scratch.reserve<R>(splits > 1 && f.grad && teams == 0 ? 3 * f.count : 0);
  const int64_t factor = scratch.reserve<R>(finds_factor);
  const int64_t recorded = scratch.reserve<float>(table ? f.count : 0);
  const int64_t counters = scratch.reserve<unsigned>(1 + teams);
  Tensor memory = torch::stable::new_empty(like, {scratch.bytes}, ScalarType::Byte);
  const auto piece = [&]<typename Element>(int64_t at, Element*& pointer) {
    pointer = reinterpret_cast<Element*>(static_cast<char*>(memory.mutable_data_ptr()) + at);
  };
  if (reduces) {
    piece(sums, batch.sums);
    batch.counts = batch.sums + parts;
    batch.parts = parts;
  }
  if (table) piece(recorded, f.recorded);
  if (finds_factor) {
    R* found;
    piece(factor, found);
    launch(find_factor<T>, 1, kCountThreads, static_cast<const Rows<T>&>(f), found);
    f.factor = found;
  }
  unsigned* ticket;
  piece(counters, ticket);
  if (finishes) batch.ticket = ticket;
  // Where one block is all, or the kernel before the last, there is no need.
  if (teams > 0 || (finishes && splits == 1 && parts > 1))
    launch.zero(ticket, (1 + teams) * static_cast<int64_t>(sizeof(unsigned)));

  RowSums<R>* row_sums;
  piece(split_sums, row_sums);
  const auto run = [&]<bool kGrad>(std::bool_constant<kGrad>) {
    if (soft) {
      for_soft_lanes(f.classes, [&](auto lanes) {
        launch(forward_soft<T, lanes(), kGrad>, parts, kSoftThreads, f);
      });
    } else if (strided) {
      launch(forward_strided<T, kGrad>, parts, kStridedThreads, f);
    } else if (held) {
      for_held<T>(f.classes, [&](auto lanes) {
        launch(forward_held<T, lanes(), kGrad>, parts, kThreads<lanes()>, f);
      });
    } else if (splits == 1) {
      const int64_t resident = launch.resident_blocks(forward_streamed<T, kGrad>, kStreamLanes),
                    fit = kGrad ? streamed_rows(row_bytes) : f.count;
      launch(forward_streamed<T, kGrad>, std::min({f.count, resident, fit}), kStreamLanes, f);
    } else if (teams > 0) {
      launch.cooperative(forward_in_teams<T>, teams * splits, kStreamLanes, f,
                         Teams<T>{splits, row_sums, ticket + 1});
    } else {
      if (kGrad) piece(split_gradients, f.splits);
      launch(sum_splits<T>, f.count * splits, kStreamLanes, f, splits, row_sums);
      launch(merge_splits<T>, (f.count + kMergedRows - 1) / kMergedRows, kStreamLanes, f, splits,
             row_sums);
      if constexpr (kGrad) launch(gradient_of_splits<T>, f.count * splits, kStreamLanes, f, splits);
    }
  };
  if (f.grad)
    run(std::true_type{});
  else
    run(std::false_type{});
  if (records_apart) {
    batch.table = table;
    launch_record(launch, f);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward_cuda(
    Tensor input, Tensor target, std::optional<Tensor> weight, double label_smoothing,
    int64_t ignore_index, int64_t reduction, std::optional<Tensor> grad,
    std::optional<Tensor> table, std::optional<Tensor> index, int64_t score,
    std::optional<Tensor> class_weight, double z_loss, std::optional<Tensor> weight_table) {
  const char* op = "scored_cross_entropy";
  check_arguments(op, input, target, weight, class_weight, label_smoothing, z_loss, reduction);
  if (grad) check_grad(op, *grad, input);
  check_samples(op, table, weight_table, weight, index, score, input);
  check_written(op, input, target, weight, class_weight, weight_table, grad, table, index);
  const bool soft = is_soft(target, class_weight, label_smoothing);
  check_soft_grad(op, grad, soft);
  input = with_known_strides(input, soft);
  const int64_t rows = row_count(input), classes = class_count(input);
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(input, shape, dtype);
  };
  const ScalarType real = compute_dtype(input);
  const bool reduces = reduction != 0;
  const bool is_mean = reduction == static_cast<int64_t>(Reduction::kMean);
  Tensor loss = reduces  ? empty({}, real)
      : input.dim() == 2 ? empty({input.size(0)}, real)
                         : empty({input.size(0), input.size(1)}, real);
  Tensor scores = empty({3, rows}, ScalarType::Float);
  Tensor stats = empty({grad ? 0 : rows + 1, 2}, real);
  if (rows == 0) {
    if (reduces) torch::stable::fill_(loss, is_mean ? std::nan("") : 0.0);
    return {loss, scores, stats};
  }

  const Launcher launch(input);
  for_floating(input.scalar_type(), [&]<typename T>(T) {
    using R = Real<T>;
    Forward<T> f{{.input = input.const_data_ptr<T>(),
                  .at = Layout(input),
                  .target = classes_of(target),
                  .distributions = distributions_of<R>(target),
                  .weight = weight ? weight->const_data_ptr<R>() : nullptr,
                  .class_weight = class_weight ? class_weight->const_data_ptr<R>() : nullptr,
                  .weight_table = weight_table ? weight_table->const_data_ptr<float>() : nullptr,
                  .index = index ? index->const_data_ptr<int64_t>() : nullptr,
                  .count = rows,
                  .classes = classes,
                  .ignore_index = ignore_index,
                  .smoothing = label_smoothing,
                  .z_loss = z_loss,
                  .loss = reduces ? nullptr : loss.mutable_data_ptr<R>(),
                  .stats = grad ? nullptr : stats.mutable_data_ptr<R>(),
                  .scores = scores.mutable_data_ptr<float>(),
                  .score = static_cast<Score>(score),
                  .grad = grad ? grad->mutable_data_ptr<T>() : nullptr,
                  .grad_at = Layout(grad ? *grad : input)},
                 {.reduction = static_cast<Reduction>(reduction),
                  .loss = loss.mutable_data_ptr<R>(),
                  .factor = is_mean && !grad ? stats.mutable_data_ptr<R>() + 2 * rows : nullptr,
                  .table = table ? table->mutable_data_ptr<float>() : nullptr,
                  .index = index ? index->const_data_ptr<int64_t>() : nullptr,
                  .samples = index ? sample_count(table, weight_table) : 0,
                  .sequences = input.size(0)}};
    launch_forward(launch, f, input);
  });
  return {loss, scores, stats};
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("scored_cross_entropy", TORCH_BOX(&forward_cuda));
}

}  // namespace cpfast::scored_cross_entropy
