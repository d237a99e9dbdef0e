#include "../select_samples.h"

#include "device.h"
#include "launch.h"

#include <initializer_list>
#include <tuple>

namespace cpfast::select_samples {
namespace {

// Up to here one block of many threads does everything, in one launch. Beyond, one launch sums
// tiles, and in another all blocks run at once, and wait for each other: some 6 us more, for as
// many multiprocessors as there are tiles. By the instructions, the two meet at two tiles.
constexpr int64_t kOneBlock = 2 * kTile;
static_assert(kOneBlock <= kSumTile);
constexpr int kBlockThreads = 1024;
constexpr int kGridThreads = 256;

struct Selecting {
  const float* scores;
  int64_t samples;
  double* sums;     // [sum_tiles]
  int32_t* finite;  // [sum_tiles]
  // [tiles], one more than how many samples are below the mean (or drawn), and kept: 0 is not yet.
  uint32_t *counted, *kept;
  unsigned long long* all_counted;
  uint32_t* arrived;  // blocks
  void* indices;
  float* weights;
  int64_t* count;
  int64_t sum_tiles, tiles;
  double keep;
  uint64_t drawn_below;
  float below_weight;
  bool exact, shuffle;
  Philox philox;
  RoundKeys subset_keys, order_keys;

  // Whether anything has to be known of all samples, besides their mean, before one is written.
  __device__ bool counts() const { return exact || shuffle; }
};

// The sum over all lanes, in the order of the contract. A thread has lanes kOwn * threadIdx.x + k.
template <int kThreads, int kOwn = kSumLanes / kThreads>
__device__ double fold(const double (&own)[kOwn]) {
  __shared__ double lanes[kSumLanes], sum;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) lanes[kOwn * threadIdx.x + k] = own[k];
  __syncthreads();
  for (int half = kSumLanes / 2; half >= 32; half /= 2) {
    for (int l = threadIdx.x; l < half; l += kThreads) lanes[l] += lanes[l + half];
    __syncthreads();
  }
  if (threadIdx.x < 32) {
    const double total = warp_sum(lanes[threadIdx.x]);
    if (threadIdx.x == 0) sum = total;
  }
  __syncthreads();
  return sum;
}

// Sum and number of the finite scores of a tile. Vectors are loaded of whole tiles alone.
template <int kThreads>
__device__ double tile_sum(const float* tile, int n, int& finite) {
  constexpr int kOwn = kSumLanes / kThreads;
  double lanes[kOwn] = {};
  int own_finite = 0, before;
  const auto add = [&](int k, float score) {
    const bool is_finite = fabs(score) < INFINITY;
    lanes[k] += static_cast<double>(is_finite ? score : 0.0f);
    own_finite += is_finite;
  };
  if (kOwn == 4 && n == kSumTile && is_aligned(tile)) {
#pragma unroll 4
    for (int row = 0; row < kSumTile; row += kSumLanes) {
      float score[4];
      load<true>(tile + row + 4 * threadIdx.x, score);
#pragma unroll
      for (int k = 0; k < kOwn; ++k) add(k, score[k]);
    }
  } else {
    for (int row = 0; row < n; row += kSumLanes)
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        const int i = row + kOwn * static_cast<int>(threadIdx.x) + k;
        if (i < n) add(k, tile[i]);
      }
  }
  finite = sum_of_warps<kThreads>(warp_sum(own_finite), before);
  return fold<kThreads>(lanes);  // and a barrier
}

// And makes ready what the blocks of the next kernel wait at.
__global__ void __launch_bounds__(kGridThreads) sum_scores(const __grid_constant__ Selecting s) {
  const int64_t tile = blockIdx.x, first = tile * kSumTile;
  int finite;
  const double sum = tile_sum<kGridThreads>(
      s.scores + first, static_cast<int>(min(kSumTile, s.samples - first)), finite);
  if (threadIdx.x == 0) {
    s.sums[tile] = sum;
    s.finite[tile] = finite;
  }
  const int64_t waited = tile * (kSumTile / kTile) + threadIdx.x;
  if (threadIdx.x < kSumTile / kTile && waited < s.tiles) s.kept[waited] = 0;
  if (tile == 0 && threadIdx.x == 0) {
    *s.all_counted = 0;
    *s.arrived = 0;
  }
}

template <int kThreads>
__device__ float threshold_of_sums(const Selecting& s) {
  constexpr int kOwn = kSumLanes / kThreads;
  double lanes[kOwn] = {};
  int64_t finite = 0, before;
  for (int64_t first = kOwn * threadIdx.x; first < s.sum_tiles; first += kSumLanes)
#pragma unroll
    for (int k = 0; k < kOwn; ++k)
      if (first + k < s.sum_tiles) lanes[k] += s.sums[first + k];
  for (int64_t tile = threadIdx.x; tile < s.sum_tiles; tile += kThreads) finite += s.finite[tile];
  finite = sum_of_warps<kThreads>(warp_sum(finite), before);
  return threshold_of(fold<kThreads>(lanes), finite);
}

// Of the sum of all samples, where they are one tile.
template <int kThreads>
__device__ float threshold_alone(const Selecting& s) {
  int finite;
  const double sum = tile_sum<kThreads>(s.scores, static_cast<int>(s.samples), finite);
  return threshold_of(sum, finite);
}

__device__ void meet(const Selecting& s) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(s.arrived, 1u);
    while (*static_cast<volatile uint32_t*>(s.arrived) < gridDim.x) __nanosleep(32);
    __threadfence();
  }
  __syncthreads();
}

// Adds the counts of tiles [from, to), each as soon as it is there. A block waits for tiles before
// its own alone, and takes its own in ascending order, so that one block at least can go on.
template <int kThreads>
__device__ int64_t sum_of_counts(const uint32_t* counts, int64_t from, int64_t to) {
  int64_t sum = 0, before;
  for (int64_t t = from + threadIdx.x; t < to; t += kThreads) {
    uint32_t count;
    while ((count = *static_cast<const volatile uint32_t*>(counts + t)) == 0) __nanosleep(32);
    sum += count - 1;
  }
  sum = sum_of_warps<kThreads>(warp_sum(sum), before);
  __syncthreads();
  return sum;
}

__device__ uint32_t lanes_before() { return (1u << (threadIdx.x % 32)) - 1; }

// What a warp has of a tile: kWords words of 32 samples, a sample a lane.
template <int kThreads, int kWords>
struct Share {
  static constexpr int64_t kSamples = int64_t{kThreads} * kWords;  // of a tile

  const float* scores;
  int64_t first_sample;
  int n;  // samples, from none to all
  float threshold;
  uint32_t *drawn, *marks;  // [kWords] bits of below-mean ranks, and of samples

  __device__ Share(const Selecting& s, int64_t tile, float threshold) : threshold(threshold) {
    __shared__ uint32_t all_drawn[kThreads / 32 * kWords], all_marks[kThreads / 32 * kWords];
    const int first_word = static_cast<int>(threadIdx.x) / 32 * kWords;
    first_sample = tile * kSamples + first_word * 32;
    scores = s.scores + first_sample;
    n = static_cast<int>(max(int64_t{0}, min(int64_t{kWords * 32}, s.samples - first_sample)));
    drawn = all_drawn + first_word;
    marks = all_marks + first_word;
  }

  __device__ int lane() const { return static_cast<int>(threadIdx.x % 32); }

  __device__ bool is_below(int word) const {
    const int i = word * 32 + lane();
    return i < n && scores[i] < threshold;
  }

  __device__ int count_below() const {
    int below = 0;
#pragma unroll 4
    for (int word = 0; word < kWords; ++word) below += is_below(word);
    return warp_sum(below);
  }

  // Which of the below-mean samples, from `rank` on, are kept. A lane that has arrived takes the
  // next rank, for if each kept its own, all would wait for the slowest.
  __device__ void draw_ranks(const Permutation& subset, uint64_t size, int64_t rank, int below) {
    for (int word = lane(); word < kWords; word += 32) drawn[word] = 0;
    __syncwarp();
    int own = lane(), next = 32;
    uint64_t x = rank + own;
    while (__any_sync(kAllLanes, own < below)) {
      x = subset.step(x);
      const bool arrived = own < below && x < subset.n;
      if (arrived && x < size) atomicOr(drawn + own / 32, 1u << (own % 32));
      const uint32_t free = __ballot_sync(kAllLanes, arrived);
      if (arrived) {
        own = next + __popc(free & lanes_before());
        x = rank + own;
      }
      next += __popc(free);
    }
    __syncwarp();
  }

  // Marks the kept samples, given the drawn ranks; returns their number.
  __device__ int mark_ranks() {
    int kept = 0, rank = 0;
#pragma unroll 4
    for (int word = 0; word < kWords; ++word) {
      const bool below = is_below(word);
      const uint32_t mask = __ballot_sync(kAllLanes, below);
      const int own = rank + __popc(mask & lanes_before());
      const bool keep = below ? drawn[own / 32] >> (own % 32) & 1 : word * 32 + lane() < n;
      kept += set_mark(word, keep);
      rank += __popc(mask);
    }
    return kept;
  }

  // The same by the samples' own numbers.
  __device__ int mark_numbers(const Selecting& s) {
    int kept = 0;
#pragma unroll 1
    for (int word = 0; word < kWords; word += 4) {
      const uint64_t counter = (first_sample + word * 32) / 4 + lane();
      uint32_t numbers[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32)};
      s.philox(numbers, Philox::high);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const bool there = (word + k) * 32 + lane() < n;
        const bool drawn = numbers[k] < s.drawn_below;
        kept += set_mark(word + k, is_below(word + k) ? drawn : there);
      }
    }
    return kept;
  }

  __device__ int set_mark(int word, bool keep) {
    const uint32_t mark = __ballot_sync(kAllLanes, keep);
    if (lane() == 0) marks[word] = mark;
    return __popc(mark);
  }

  template <typename Index>
  __device__ void write(const Selecting& s, const Permutation& order, int64_t position) {
    Index* const indices = static_cast<Index*>(s.indices);
    __syncwarp();
#pragma unroll 1
    for (int word = 0; word < kWords; ++word) {
      const uint32_t mark = marks[word];
      const bool below = is_below(word);
      if (mark >> lane() & 1) {
        int64_t at = position + __popc(mark & lanes_before());
        if (s.shuffle) at = static_cast<int64_t>(order.inverse(at));
        indices[at] = static_cast<Index>(first_sample + word * 32 + lane());
        s.weights[at] = below ? s.below_weight : 1.0f;
      }
      position += __popc(mark);
    }
    __syncwarp();  // lane 0 may now write the marks of another tile
  }
};

// One block for one tile of all samples, or all blocks at once, for whose tiles of kTile the sums
// are there.
template <int kThreads, typename Index>
__global__ void __launch_bounds__(kThreads) select(const __grid_constant__ Selecting s) {
  constexpr bool kAlone = kThreads == kBlockThreads;
  constexpr int kWords = (kAlone ? kOneBlock : kTile) / kThreads;
  using Part = Share<kThreads, kWords>;
  float threshold;
  if constexpr (kAlone)
    threshold = threshold_alone<kThreads>(s);
  else
    threshold = threshold_of_sums<kThreads>(s);
  const int64_t tiles = kAlone ? 1 : s.tiles, step = kAlone ? 1 : gridDim.x;

  int64_t all_counted = 0, own_counted = 0;
  if (s.counts()) {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += step) {
      Part part(s, tile, threshold);
      int before;
      const int counted =
          sum_of_warps<kThreads>(s.exact ? part.count_below() : part.mark_numbers(s), before);
      own_counted += counted;
      if (threadIdx.x == 0) s.counted[tile] = 1 + counted;
      __syncthreads();
    }
    if constexpr (kAlone) {
      all_counted = own_counted;
    } else {
      if (threadIdx.x == 0) atomicAdd(s.all_counted, static_cast<unsigned long long>(own_counted));
      meet(s);
      all_counted = static_cast<int64_t>(*static_cast<volatile unsigned long long*>(s.all_counted));
    }
  }
  const int64_t chosen = subset_size(s.keep, all_counted);
  const Permutation subset(all_counted, s.subset_keys),
      order(s.exact ? s.samples - all_counted + chosen : all_counted, s.order_keys);

  int64_t summed = 0, rank = 0, position = 0;  // of the first sample of tile `summed`
  int kept = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += step) {
    Part part(s, tile, threshold);
    int before = 0;
    if (s.exact) {
      const int below = part.count_below();
      if constexpr (!kAlone) rank += sum_of_counts<kThreads>(s.counted, summed, tile);
      sum_of_warps<kThreads>(below, before);
      part.draw_ranks(subset, chosen, rank + before, below);
      __syncthreads();
    }
    kept = sum_of_warps<kThreads>(s.exact ? part.mark_ranks() : part.mark_numbers(s), before);
    if constexpr (!kAlone) {
      if (threadIdx.x == 0) *static_cast<volatile uint32_t*>(s.kept + tile) = 1 + kept;
      position += sum_of_counts<kThreads>(s.kept, summed, tile);
    }
    part.template write<Index>(s, order, position + before);
    summed = tile;
  }

  position += kAlone ? kept : sum_of_counts<kThreads>(s.kept, summed, tiles);
  if (blockIdx.x == 0 && threadIdx.x == 0) *s.count = position;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t at = position + thread; at < s.samples; at += int64_t{gridDim.x} * kThreads) {
    static_cast<Index*>(s.indices)[at] = -1;
    s.weights[at] = 0;
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> select_cuda(Tensor scores, double keep, int64_t seed,
                                               int64_t epoch, int64_t stream, bool shuffle,
                                               bool exact, ScalarType dtype) {
  check_arguments(scores, keep, dtype);
  const int64_t samples = scores.size(0);
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(scores, shape, dtype);
  };
  Tensor indices = empty({samples}, dtype), weights = empty({samples}, ScalarType::Float),
         count = empty({}, ScalarType::Long);
  if (samples == 0) return {indices, weights, torch::stable::zero_(count)};

  const bool alone = samples <= kOneBlock;
  const int64_t tiles = alone ? 1 : (samples + kTile - 1) / kTile;
  const int64_t sum_tiles = (samples + kSumTile - 1) / kSumTile;
  Tensor longs = empty({sum_tiles + 1}, ScalarType::Long);
  Tensor ints = empty({sum_tiles + 2 * tiles + 1}, ScalarType::Int);
  int64_t* const long_at = longs.mutable_data_ptr<int64_t>();
  int32_t* const finite = ints.mutable_data_ptr<int32_t>();
  uint32_t* const int_at = reinterpret_cast<uint32_t*>(finite + sum_tiles);
  const uint64_t s = seed, e = epoch, r = stream;
  const Selecting selecting{scores.const_data_ptr<float>(),
                            samples,
                            reinterpret_cast<double*>(long_at + 1),
                            finite,
                            int_at,
                            int_at + tiles,
                            reinterpret_cast<unsigned long long*>(long_at),
                            int_at + 2 * tiles,
                            indices.mutable_data_ptr(),
                            weights.mutable_data_ptr<float>(),
                            count.mutable_data_ptr<int64_t>(),
                            sum_tiles,
                            tiles,
                            keep,
                            drawn_below(keep),
                            static_cast<float>(1 / keep),
                            exact,
                            shuffle,
                            Philox{draw_key(s, e, r, Purpose::kBernoulli)},
                            RoundKeys(s, e, r, Purpose::kSubset),
                            RoundKeys(s, e, r, Purpose::kShuffle)};

  const Launcher launch(scores);
  const bool narrow = dtype == ScalarType::Int;
  if (alone) {
    launch(narrow ? select<kBlockThreads, int32_t> : select<kBlockThreads, int64_t>, 1,
           kBlockThreads, selecting);
  } else {
    const auto kernel = narrow ? select<kGridThreads, int32_t> : select<kGridThreads, int64_t>;
    launch(sum_scores, sum_tiles, kGridThreads, selecting);
    // As many as fit, down to one: what they select does not depend on their number.
    int64_t blocks = std::min(tiles, launch.resident_blocks(kernel, kGridThreads));
    while (!launch.cooperative(kernel, blocks, kGridThreads, selecting)) blocks /= 2;
  }
  return {indices, weights, count};
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) { m.impl("select_samples", TORCH_BOX(&select_cuda)); }

}  // namespace cpfast::select_samples
