// What the last block of a grid does with all rows of a batch: adds their losses, and writes their
// scores into the table.
#pragma once

#include "../scored_cross_entropy.h"

#include "claims.h"
#include "device.h"

namespace cpfast::scored_cross_entropy {

// What the last block does with all rows.
template <typename T>
struct Batch {
  Reduction reduction;
  double *sums, *counts;  // [parts] of losses and of rows that count: a part a block, or a row
  int64_t parts;
  Real<T>* loss;    // [], where there is a reduction
  Real<T>* factor;  // null, or [], where that is the mean: 1 / count, for the backward pass
  float* table;     // null where nothing is recorded
  const int64_t* index;
  int64_t samples, sequences;
  unsigned* ticket;  // zero, of more than one block; null where there is nothing to do
};

// Where sequences have more than one token, the first two of them take their score, and whether
// any token counts. Runs in `warps` warps.
template <typename T>
__device__ void score_sequences(const Rows<T>& f, int64_t sequences, int64_t warp, int64_t warps) {
  const int64_t tokens = f.at.tokens;
  for (int64_t i = warp; i < sequences; i += warps) {
    double sum = 0;
    int64_t counted = 0;
    for (int64_t row = i * tokens + threadIdx.x % 32; row < (i + 1) * tokens; row += 32) {
      const bool counts = !f.ignores(row);
      sum += counts ? __ldcg(f.recorded + row) : 0.0f;
      counted += counts;
    }
    sum = warp_sum(sum);
    counted = warp_sum(counted);
    if (threadIdx.x % 32 == 0) {
      f.recorded[i * tokens] = static_cast<float>(sum / static_cast<double>(counted));
      f.recorded[i * tokens + 1] = counted > 0;
    }
    __syncwarp();
  }
}

// One of the three steps of writing a sequence's score to its place in the table.
enum class Step { kClear, kClaim, kFill };

template <typename T>
__device__ void record(const Rows<T>& f, const Batch<T>& batch, int64_t i, int64_t claim,
                       Step step) {
  const int64_t tokens = f.at.tokens;
  const bool counts = tokens > 1 ? __ldcg(f.recorded + i * tokens + 1) != 0 : !f.ignores(i);
  if (!counts) return;
  float* const place = batch.table + batch.index[i];
  switch (step) {
    case Step::kClear: clear_place(place); break;
    case Step::kClaim: claim_place(place, claim); break;
    case Step::kFill: fill_claimed(place, claim, __ldcg(f.recorded + i * tokens));
  }
}

template <typename T>
__device__ void check_index(const Batch<T>& batch, int64_t i) {
  CUDA_KERNEL_ASSERT(batch.index[i] >= 0 && batch.index[i] < batch.samples &&
                     "scored_cross_entropy: index out of range");
}

template <int kThreads, typename T>
__device__ void finish_batch(const Rows<T>& f, const Batch<T>& batch) {
  using R = Real<T>;
  if (batch.reduction != Reduction::kNone) {
    double sum = 0, counted = 0;
    for (int64_t i = threadIdx.x; i < batch.parts; i += kThreads) {
      sum += __ldcg(batch.sums + i);
      counted += __ldcg(batch.counts + i);
    }
    sum = block_sum<kThreads>(sum);
    counted = block_sum<kThreads>(counted);
    if (threadIdx.x == 0) {
      // In float64 also where gradients had to be scaled before: the loss does not depend on when
      // they are computed.
      const double factor = batch.reduction == Reduction::kMean ? 1 / counted : 1;
      *batch.loss = static_cast<R>(sum * factor);
      if (batch.factor) *batch.factor = static_cast<R>(factor);
    }
  }
  if (batch.table == nullptr) return;
  if (f.at.tokens > 1) score_sequences(f, batch.sequences, threadIdx.x / 32, kThreads / 32);
  // Before anything is written.
  for (int64_t i = threadIdx.x; i < batch.sequences; i += kThreads) check_index(batch, i);
  for (const Step step : {Step::kClear, Step::kClaim, Step::kFill}) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < batch.sequences; i += kThreads) record(f, batch, i, i, step);
  }
}

// Leaves what a row or a block adds to the batch; runs in one thread.
template <typename T>
__device__ void write_part(const Batch<T>& batch, int64_t part, double sum, double counted) {
  if (batch.reduction == Reduction::kNone) return;
  batch.sums[part] = sum;
  batch.counts[part] = counted;
}

}  // namespace cpfast::scored_cross_entropy
