#include "../select_samples.h"

#include "isa.h"

#include <numeric>
#include <tuple>

namespace cpfast::select_samples {
namespace {

#define CPFAST_KERNEL "select_samples_kernel.h"
#include "foreach_isa.h"

// Marks, a bit a sample, are kept for so many tiles, and not for all samples.
constexpr int64_t kWave = 128;

// Tiles are some 3 us of work each, four of them worth a thread.
template <typename Run>
void for_tiles(int64_t first, int64_t end, const Run& run) {
  torch::stable::parallel_for(first, end, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) run(t);
  });
}

float threshold_of_scores(const float* scores, int64_t samples) {
  const int64_t tiles = (samples + kSumTile - 1) / kSumTile;
  std::vector<double> sums(tiles);
  std::vector<int64_t> finite(tiles);
  for_tiles(0, tiles, [&](int64_t t) {
    const int64_t first = t * kSumTile;
    sums[t] =
        CPFAST_DISPATCH(tile_sum)(scores + first, std::min(kSumTile, samples - first), finite[t]);
  });
  return threshold_of(CPFAST_DISPATCH(sum_of_tiles)(sums.data(), tiles),
                      std::accumulate(finite.begin(), finite.end(), int64_t{0}));
}

struct Draw {
  double keep;
  uint64_t seed, epoch, stream;
  bool shuffle, exact;
};

// Returns how many samples are kept.
template <typename Index>
int64_t select(const float* scores, int64_t samples, const Draw& draw, Index* indices,
               float* weights) {
  const float threshold = threshold_of_scores(scores, samples);
  const int64_t tiles = (samples + kTile - 1) / kTile;
  const auto size_of = [&](int64_t t) { return std::min(kTile, samples - t * kTile); };
  const auto keys = [&](Purpose purpose) {
    return RoundKeys(draw.seed, draw.epoch, draw.stream, purpose);
  };
  const Philox philox{draw_key(draw.seed, draw.epoch, draw.stream, Purpose::kBernoulli)};
  const auto draw_tile = [&](int64_t t, uint64_t* marks) {
    return CPFAST_DISPATCH(tile_draw)(scores + t * kTile, t * kTile, size_of(t), threshold, philox,
                                      drawn_below(draw.keep), marks);
  };

  // Which ranks the below-mean samples of a tile have, and what the order of all kept ones is,
  // has to be known before the first tile is written.
  std::vector<int16_t> counts(draw.exact || draw.shuffle ? tiles : 0);
  for_tiles(0, counts.size(), [&](int64_t t) {
    uint64_t marks[kTile / 64];
    counts[t] = draw.exact ? CPFAST_DISPATCH(tile_below)(scores + t * kTile, size_of(t), threshold)
                           : draw_tile(t, marks);
  });
  const int64_t counted = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t chosen = subset_size(draw.keep, counted);
  const Permutation subset(counted, keys(Purpose::kSubset));
  const Permutation order(draw.exact ? samples - counted + chosen : counted,
                          keys(Purpose::kShuffle));

  std::vector<uint64_t> marks(std::min(tiles, kWave) * (kTile / 64));
  int64_t ranks[kWave], kept[kWave], first_kept[kWave], rank = 0, all_kept = 0;
  for (int64_t wave = 0; wave < tiles; wave += kWave) {
    const int64_t end = std::min(tiles, wave + kWave);
    for (int64_t t = wave; draw.exact && t < end; rank += counts[t++]) ranks[t - wave] = rank;
    const auto marks_of = [&](int64_t t) { return marks.data() + (t - wave) * (kTile / 64); };
    for_tiles(wave, end, [&](int64_t t) {
      kept[t - wave] = draw.exact
          ? CPFAST_DISPATCH(tile_mark)(scores + t * kTile, size_of(t), threshold, subset,
                                       ranks[t - wave], counts[t], chosen, marks_of(t))
          : draw_tile(t, marks_of(t));
    });
    std::exclusive_scan(kept, kept + (end - wave), first_kept, all_kept);
    all_kept = first_kept[end - wave - 1] + kept[end - wave - 1];
    for_tiles(wave, end, [&](int64_t t) {
      CPFAST_DISPATCH(tile_write<Index>)(
          scores + t * kTile, t * kTile, size_of(t), threshold, static_cast<float>(1 / draw.keep),
          marks_of(t), draw.shuffle ? &order : nullptr, first_kept[t - wave], indices, weights);
    });
  }
  torch::stable::parallel_for(all_kept, samples, 4 * kTile, [&](int64_t begin, int64_t end) {
    std::fill(indices + begin, indices + end, Index{-1});
    std::fill(weights + begin, weights + end, 0.0f);
  });
  return all_kept;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> select_cpu(Tensor scores, double keep, int64_t seed,
                                              int64_t epoch, int64_t stream, bool shuffle,
                                              bool exact, ScalarType dtype) {
  check_arguments(scores, keep, dtype);
  const int64_t samples = scores.size(0);
  Tensor indices = torch::stable::new_empty(scores, {samples}, dtype);
  Tensor weights = torch::stable::new_empty(scores, {samples});
  Tensor count = torch::stable::new_empty(scores, {}, ScalarType::Long);
  const Draw draw{keep,
                  static_cast<uint64_t>(seed),
                  static_cast<uint64_t>(epoch),
                  static_cast<uint64_t>(stream),
                  shuffle,
                  exact};
  const auto run = [&](auto* index) {
    return select(scores.const_data_ptr<float>(), samples, draw, index,
                  weights.mutable_data_ptr<float>());
  };
  *count.mutable_data_ptr<int64_t>() = dtype == ScalarType::Int
      ? run(indices.mutable_data_ptr<int32_t>())
      : run(indices.mutable_data_ptr<int64_t>());
  return {indices, weights, count};
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) { m.impl("select_samples", TORCH_BOX(&select_cpu)); }

}  // namespace cpfast::select_samples
