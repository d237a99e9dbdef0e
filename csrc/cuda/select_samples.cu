#include "../select_samples.h"

#include "device.h"
#include "launch.h"

#include <initializer_list>
#include <tuple>

namespace cpfast::select_samples {
namespace {

constexpr int kThreads = 256;      // of the kernels that run a block a tile
constexpr int kScanThreads = 1024;  // of those that run one block for all tiles
constexpr int kWarpWords = kTile / kThreads;  // words of 32 samples that a warp looks after
constexpr int kSumLanes = 8;

// What is known of all samples, once the kernels that count them have run.
struct Draw {
  float threshold;
  int64_t subset_size, kept;
  Permutation subset, order;
};

struct Tiles {
  const float* scores;
  int64_t samples, count;
  double* sums;                    // [count]
  int64_t *finite, *below, *kept;  // [count]; below and kept become sums over the tiles before
  uint32_t* marks;                 // [count, kTile / 32], a bit a sample: is it kept?
  Draw* draw;

  __device__ const float* tile() const { return scores + int64_t{blockIdx.x} * kTile; }
  __device__ int tile_samples() const {
    return static_cast<int>(min(kTile, samples - int64_t{blockIdx.x} * kTile));
  }
};

// What the draws depend on besides the scores.
struct Keys {
  double keep;
  uint64_t seed, epoch, stream;
};

// Passes the scores of a tile to use(i, score), 16 bytes at a time where they lie so.
template <typename Use>
__device__ void for_scores(const float* tile, int n, const Use& use) {
  int done = 0;
  if (is_aligned(tile)) {
    done = n / 4 * 4;
#pragma unroll 4
    for (int i = 4 * threadIdx.x; i < done; i += 4 * kThreads) {
      float score[4];
      load<true>(tile + i, score);
#pragma unroll
      for (int k = 0; k < 4; ++k) use(i + k, score[k]);
    }
  }
  for (int i = done + threadIdx.x; i < n; i += kThreads) use(i, tile[i]);
}

// In the order of the CPU kernel, eight lanes and then their sum: the mean is the same to the bit,
// so that no score near it falls on the other side.
__global__ void __launch_bounds__(kThreads) sum_scores(const __grid_constant__ Tiles tiles) {
  __shared__ float addends[kTile];
  const int n = tiles.tile_samples();
  int finite = 0;
  for_scores(tiles.tile(), n, [&](int i, float score) {
    const bool is_finite = fabs(score) < INFINITY;
    addends[i] = is_finite ? score : 0.0f;
    finite += is_finite;
  });
  int before;
  finite = sum_of_warps<kThreads>(warp_sum(finite), before);  // and a barrier
  if (threadIdx.x >= kSumLanes) return;
  double lane_sum = 0, sum = 0;
#pragma unroll 16
  for (int i = threadIdx.x; i < n; i += kSumLanes) lane_sum += addends[i];
  for (int lane = 0; lane < kSumLanes; ++lane)
    sum += __shfl_sync((1u << kSumLanes) - 1, lane_sum, lane);
  if (threadIdx.x == 0) {
    tiles.sums[blockIdx.x] = sum;
    tiles.finite[blockIdx.x] = finite;
  }
}

__global__ void __launch_bounds__(kScanThreads)
    find_threshold(const __grid_constant__ Tiles tiles) {
  __shared__ double staged[kScanThreads];
  const auto sum_of = [&](int64_t t) { return t < tiles.count ? tiles.sums[t] : 0.0; };
  int64_t finite = 0;
  double sum = 0, next = sum_of(threadIdx.x);
  for (int64_t first = 0; first < tiles.count; first += kScanThreads) {
    const int64_t t = first + threadIdx.x;
    staged[threadIdx.x] = next;
    if (t < tiles.count) finite += tiles.finite[t];
    __syncthreads();
    next = sum_of(t + kScanThreads);  // arrives while thread 0 adds
    if (threadIdx.x == 0) {
      const int n = static_cast<int>(min(int64_t{kScanThreads}, tiles.count - first));
#pragma unroll 16
      for (int i = 0; i < n; ++i) sum += staged[i];
    }
    __syncthreads();
  }
  int64_t before;
  finite = sum_of_warps<kScanThreads>(warp_sum(finite), before);
  if (threadIdx.x == 0) tiles.draw->threshold = threshold_of(sum, finite);
}

__global__ void __launch_bounds__(kThreads) count_below(const __grid_constant__ Tiles tiles) {
  const float threshold = tiles.draw->threshold;
  int below = 0, before;
  for_scores(tiles.tile(), tiles.tile_samples(),
             [&](int, float score) { below += score < threshold; });
  below = sum_of_warps<kThreads>(warp_sum(below), before);
  if (threadIdx.x == 0) tiles.below[blockIdx.x] = below;
}

// Replaces each of counts[0..n) by the sum of those before it; returns the sum of all.
__device__ int64_t exclusive_scan(int64_t* counts, int64_t n) {
  constexpr int kWarps = kScanThreads / 32;
  __shared__ int64_t warp_sums[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t total = 0;
  for (int64_t first = 0; first < n; first += kScanThreads) {
    const int64_t t = first + threadIdx.x;
    const int64_t count = t < n ? counts[t] : 0;
    int64_t sum = count;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t left = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += left;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int64_t before = total;
    for (int w = 0; w < kWarps; ++w) {
      before += w < warp ? warp_sums[w] : 0;
      total += warp_sums[w];
    }
    if (t < n) counts[t] = before + sum - count;
    __syncthreads();
  }
  return total;
}

__global__ void __launch_bounds__(kScanThreads)
    rank_below(const __grid_constant__ Tiles tiles, const __grid_constant__ Keys keys) {
  const int64_t below = exclusive_scan(tiles.below, tiles.count);
  if (threadIdx.x != 0) return;
  tiles.draw->subset_size = subset_size(keys.keep, below);
  tiles.draw->subset = Permutation(below, keys.seed, keys.epoch, keys.stream, Purpose::kSubset);
}

__global__ void __launch_bounds__(kScanThreads)
    rank_kept(const __grid_constant__ Tiles tiles, const __grid_constant__ Keys keys,
              int64_t* count) {
  const int64_t kept = exclusive_scan(tiles.kept, tiles.count);
  if (threadIdx.x != 0) return;
  *count = tiles.draw->kept = kept;
  tiles.draw->order = Permutation(kept, keys.seed, keys.epoch, keys.stream, Purpose::kShuffle);
}

__device__ uint32_t lanes_before() { return (1u << (threadIdx.x % 32)) - 1; }

__global__ void __launch_bounds__(kThreads) mark_kept(const __grid_constant__ Tiles tiles) {
  const int lane = threadIdx.x % 32, first_word = threadIdx.x / 32 * kWarpWords;
  const float* tile = tiles.tile();
  const int n = tiles.tile_samples();
  const float threshold = tiles.draw->threshold;
  const auto is_below = [&](int word) {
    const int i = word * 32 + lane;
    return i < n && tile[i] < threshold;
  };
  int below = 0, below_before, kept_before;
#pragma unroll
  for (int word = 0; word < kWarpWords; ++word) below += is_below(first_word + word);
  sum_of_warps<kThreads>(warp_sum(below), below_before);

  const uint64_t size = tiles.draw->subset_size;
  const Permutation subset = tiles.draw->subset;
  int64_t rank = tiles.below[blockIdx.x] + below_before;
  int kept = 0;
#pragma unroll 1
  for (int word = first_word; word < first_word + kWarpWords; ++word) {
    const bool draws = is_below(word);
    const uint32_t draw_mask = __ballot_sync(kAllLanes, draws);
    bool keep = word * 32 + lane < n;
    if (draws) keep = subset(rank + __popc(draw_mask & lanes_before())) < size;
    const uint32_t mark = __ballot_sync(kAllLanes, keep);
    if (lane == 0) tiles.marks[int64_t{blockIdx.x} * (kTile / 32) + word] = mark;
    kept += __popc(mark);
    rank += __popc(draw_mask);
  }
  __syncthreads();  // before the shared memory of sum_of_warps is written again
  kept = sum_of_warps<kThreads>(kept, kept_before);
  if (threadIdx.x == 0) tiles.kept[blockIdx.x] = kept;
}

template <bool kShuffle>
__global__ void __launch_bounds__(kThreads)
    write_kept(const __grid_constant__ Tiles tiles, float below_weight, int64_t* indices,
               float* weights) {
  const int lane = threadIdx.x % 32, first_word = threadIdx.x / 32 * kWarpWords;
  const float* tile = tiles.tile();
  const uint32_t* marks = tiles.marks + int64_t{blockIdx.x} * (kTile / 32);
  const int n = tiles.tile_samples();
  const float threshold = tiles.draw->threshold;
  const int64_t all_kept = tiles.draw->kept;
  int before;
  sum_of_warps<kThreads>(
      warp_sum(lane < kWarpWords ? __popc(marks[first_word + lane]) : 0), before);

  const Permutation order = tiles.draw->order;
  int64_t rank = tiles.kept[blockIdx.x] + before;
#pragma unroll 1
  for (int word = first_word; word < first_word + kWarpWords; ++word) {
    const uint32_t mark = marks[word];
    const int i = word * 32 + lane;
    const int64_t sample = int64_t{blockIdx.x} * kTile + i;
    if (mark >> lane & 1) {
      int64_t position = rank + __popc(mark & lanes_before());
      if constexpr (kShuffle) position = static_cast<int64_t>(order(position));
      indices[position] = sample;
      weights[position] = tile[i] < threshold ? below_weight : 1.0f;
    }
    // No kept sample has a position past all_kept, so nobody else writes this one.
    if (i < n && sample >= all_kept) {
      indices[sample] = -1;
      weights[sample] = 0;
    }
    rank += __popc(mark);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> select_cuda(Tensor scores, double keep, int64_t seed,
                                               int64_t epoch, int64_t stream, bool shuffle) {
  check_arguments(scores, keep);
  const int64_t samples = scores.size(0), count = (samples + kTile - 1) / kTile;
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(scores, shape, dtype);
  };
  Tensor indices = empty({samples}, ScalarType::Long),
         weights = empty({samples}, ScalarType::Float), kept = empty({}, ScalarType::Long);
  if (samples == 0) return {indices, weights, torch::stable::zero_(kept)};

  Tensor sums = empty({count}, ScalarType::Double), counts = empty({3, count}, ScalarType::Long),
         marks = empty({count, kTile / 32}, ScalarType::Int),
         draw = empty({sizeof(Draw)}, ScalarType::Byte);
  int64_t* const finite = counts.mutable_data_ptr<int64_t>();
  const Tiles tiles{scores.const_data_ptr<float>(),
                    samples,
                    count,
                    sums.mutable_data_ptr<double>(),
                    finite,
                    finite + count,
                    finite + 2 * count,
                    static_cast<uint32_t*>(marks.mutable_data_ptr()),
                    static_cast<Draw*>(draw.mutable_data_ptr())};
  const Keys keys{keep, static_cast<uint64_t>(seed), static_cast<uint64_t>(epoch),
                  static_cast<uint64_t>(stream)};

  const Launcher launch(scores);
  launch(sum_scores, count, kThreads, tiles);
  launch(find_threshold, 1, kScanThreads, tiles);
  launch(count_below, count, kThreads, tiles);
  launch(rank_below, 1, kScanThreads, tiles, keys);
  launch(mark_kept, count, kThreads, tiles);
  launch(rank_kept, 1, kScanThreads, tiles, keys, kept.mutable_data_ptr<int64_t>());
  launch(shuffle ? write_kept<true> : write_kept<false>, count, kThreads, tiles,
         static_cast<float>(1 / keep), indices.mutable_data_ptr<int64_t>(),
         weights.mutable_data_ptr<float>());
  return {indices, weights, kept};
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("select_samples", TORCH_BOX(&select_cuda));
}

}  // namespace cpfast::select_samples
