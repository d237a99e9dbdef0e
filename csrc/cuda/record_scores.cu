#include "../record_scores.h"

#include "device.h"
#include "launch.h"

namespace cpfast::record_scores {
namespace {

constexpr int kThreads = 256;
// Up to here a warp looks through the later positions of the batch. That is one launch, but its
// work grows with the square of the batch.
constexpr int64_t kScannedBatch = 4096;

struct Batch {
  float* scores;
  int64_t samples;
  const int64_t* index;
  const float* values;
  int64_t size;

  __device__ int64_t sample(int64_t position) const {
    const int64_t at = index[position];
    CUDA_KERNEL_ASSERT(at >= 0 && at < samples && "record_scores: index out of range");
    return at;
  }
};

__global__ void __launch_bounds__(kThreads) record_scanned(const __grid_constant__ Batch batch) {
  const int lane = threadIdx.x % 32;
  const int64_t position = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (position >= batch.size) return;
  const int64_t at = batch.sample(position);
  bool again = false;
  for (int64_t later = position + 1 + lane; later < batch.size; later += 32)
    again |= batch.index[later] == at;
  if (!__any_sync(kAllLanes, again) && lane == 0) batch.scores[at] = batch.values[position];
}

__device__ int64_t thread_in_grid() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

// last[sample] becomes the highest position of each sample of the batch; of no other sample is it
// written or read, so it needs no clearing.
__global__ void __launch_bounds__(kThreads)
    forget_last(const __grid_constant__ Batch batch, int64_t* last) {
  const int64_t position = thread_in_grid();
  if (position < batch.size) last[batch.sample(position)] = -1;
}

__global__ void __launch_bounds__(kThreads)
    find_last(const __grid_constant__ Batch batch, int64_t* last) {
  const int64_t position = thread_in_grid();
  if (position < batch.size)
    atomicMax(reinterpret_cast<long long*>(last + batch.index[position]),
              static_cast<long long>(position));
}

__global__ void __launch_bounds__(kThreads)
    record_last(const __grid_constant__ Batch batch, const int64_t* last) {
  const int64_t position = thread_in_grid();
  if (position >= batch.size) return;
  const int64_t at = batch.index[position];
  if (last[at] == position) batch.scores[at] = batch.values[position];
}

}  // namespace

void record_cuda(Tensor scores, Tensor index, Tensor values) {
  check_arguments(scores, index, values);
  const Batch batch{scores.mutable_data_ptr<float>(), scores.size(0),
                    index.const_data_ptr<int64_t>(), values.const_data_ptr<float>(),
                    index.size(0)};
  if (batch.size == 0) return;
  const Launcher launch(scores);
  if (batch.size <= kScannedBatch) {
    const int64_t warps = kThreads / 32;
    launch(record_scanned, (batch.size + warps - 1) / warps, kThreads, batch);
    return;
  }
  Tensor last = torch::stable::new_empty(index, {batch.samples});
  int64_t* const positions = last.mutable_data_ptr<int64_t>();
  const int64_t blocks = (batch.size + kThreads - 1) / kThreads;
  launch(forget_last, blocks, kThreads, batch, positions);
  launch(find_last, blocks, kThreads, batch, positions);
  launch(record_last, blocks, kThreads, batch, positions);
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("record_scores", TORCH_BOX(&record_cuda));
}

}  // namespace cpfast::record_scores
