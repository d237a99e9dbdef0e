#include "../record_scores.h"

#include "claims.h"
#include "device.h"
#include "launch.h"

namespace cpfast::record_scores {
namespace {

constexpr int kThreads = 256;
// Up to here a warp looks through the later positions of the batch. That is one launch, but its
// work grows with the square of the batch.
constexpr int64_t kScannedBatch = 4096;

template <typename Index>
struct Batch {
  float* scores;
  int64_t samples;
  const Index* index;
  const float* values;
  int64_t size;

  __device__ int64_t sample(int64_t position) const {
    const int64_t at = index[position];
    CUDA_KERNEL_ASSERT(at >= 0 && at < samples && "record_scores: index out of range");
    return at;
  }

  __device__ float* place(int64_t position) const { return scores + index[position]; }
};

template <typename Index>
__global__ void __launch_bounds__(kThreads)
    record_scanned(const __grid_constant__ Batch<Index> batch) {
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

template <typename Index>
__global__ void __launch_bounds__(kThreads)
    clear_places(const __grid_constant__ Batch<Index> batch) {
  const int64_t position = thread_in_grid();
  if (position < batch.size) clear_place(batch.scores + batch.sample(position));
}

template <typename Index>
__global__ void __launch_bounds__(kThreads)
    claim_places(const __grid_constant__ Batch<Index> batch) {
  const int64_t position = thread_in_grid();
  if (position < batch.size) claim_place(batch.place(position), position);
}

template <typename Index>
__global__ void __launch_bounds__(kThreads)
    fill_places(const __grid_constant__ Batch<Index> batch) {
  const int64_t position = thread_in_grid();
  if (position < batch.size) fill_claimed(batch.place(position), position, batch.values[position]);
}

template <typename Index>
void record(const Launcher& launch, Batch<Index> batch) {
  if (batch.size <= kScannedBatch) {
    const int64_t warps = kThreads / 32;
    launch(record_scanned<Index>, (batch.size + warps - 1) / warps, kThreads, batch);
    return;
  }
  for (int64_t left = batch.size; left > 0; left -= batch.size) {
    batch.size = std::min(left, kMaxClaims);
    const int64_t blocks = (batch.size + kThreads - 1) / kThreads;
    launch(clear_places<Index>, blocks, kThreads, batch);
    launch(claim_places<Index>, blocks, kThreads, batch);
    launch(fill_places<Index>, blocks, kThreads, batch);
    batch.index += batch.size;
    batch.values += batch.size;
  }
}

}  // namespace

void record_cuda(Tensor scores, Tensor index, Tensor values) {
  check_arguments(scores, index, values);
  const auto batch = [&](const auto* at) {
    return Batch{scores.mutable_data_ptr<float>(), scores.size(0), at,
                 values.const_data_ptr<float>(), index.size(0)};
  };
  const Launcher launch(scores);
  if (index.scalar_type() == ScalarType::Int)
    record(launch, batch(index.const_data_ptr<int32_t>()));
  else
    record(launch, batch(index.const_data_ptr<int64_t>()));
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) { m.impl("record_scores", TORCH_BOX(&record_cuda)); }

}  // namespace cpfast::record_scores
