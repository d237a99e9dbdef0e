#include "../select_samples.h"

#include "isa.h"

#include <tuple>

namespace cpfast::select_samples {
namespace {

#define CPFAST_KERNEL "select_samples_kernel.h"
#include "foreach_isa.h"

struct Tile {
  double sum = 0;
  int64_t finite = 0, below = 0, first_below = 0, kept = 0, first_kept = 0;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> select_cpu(Tensor scores, double keep, int64_t seed,
                                              int64_t epoch, int64_t stream, bool shuffle) {
  check_arguments(scores, keep);
  const int64_t samples = scores.size(0);
  const float* score = scores.const_data_ptr<float>();
  Tensor indices = torch::stable::new_empty(scores, {samples}, ScalarType::Long);
  Tensor weights = torch::stable::new_empty(scores, {samples});
  Tensor count = torch::stable::new_empty(scores, {}, ScalarType::Long);

  std::vector<Tile> tiles((samples + kTile - 1) / kTile);
  const auto for_each_tile = [&](const auto& run) {
    // Four tiles are some 10 us of work, worth a thread.
    torch::stable::parallel_for(0, tiles.size(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        run(tiles[t], t * kTile, std::min(kTile, samples - t * kTile));
    });
  };

  for_each_tile([&](Tile& tile, int64_t first, int64_t n) {
    CPFAST_DISPATCH(tile_sum)(score + first, n, tile.sum, tile.finite);
  });
  double sum = 0;
  int64_t finite = 0;
  for (const Tile& tile : tiles) {
    sum += tile.sum;
    finite += tile.finite;
  }
  const float threshold = threshold_of(sum, finite);

  for_each_tile([&](Tile& tile, int64_t first, int64_t n) {
    tile.below = CPFAST_DISPATCH(tile_below)(score + first, n, threshold);
  });
  int64_t below = 0;
  for (Tile& tile : tiles) {
    tile.first_below = below;
    below += tile.below;
  }

  const Permutation subset(below, seed, epoch, stream, Purpose::kSubset);
  std::vector<uint64_t> marks((samples + 63) / 64);
  for_each_tile([&](Tile& tile, int64_t first, int64_t n) {
    tile.kept = CPFAST_DISPATCH(tile_mark)(score + first, n, threshold, subset, tile.first_below,
                                           tile.below, subset_size(keep, below),
                                           marks.data() + first / 64);
  });
  int64_t kept = 0;
  for (Tile& tile : tiles) {
    tile.first_kept = kept;
    kept += tile.kept;
  }

  const Permutation order(kept, seed, epoch, stream, Purpose::kShuffle);
  int64_t* index = indices.mutable_data_ptr<int64_t>();
  float* weight = weights.mutable_data_ptr<float>();
  for_each_tile([&](Tile& tile, int64_t first, int64_t n) {
    CPFAST_DISPATCH(tile_write)(score + first, first, n, threshold, static_cast<float>(1 / keep),
                                marks.data() + first / 64, shuffle ? &order : nullptr,
                                tile.first_kept, tile.kept, index, weight);
  });
  std::fill(index + kept, index + samples, int64_t{-1});
  std::fill(weight + kept, weight + samples, 0.0f);
  *count.mutable_data_ptr<int64_t>() = kept;
  return {indices, weights, count};
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) {
  m.impl("select_samples", TORCH_BOX(&select_cpu));
}

}  // namespace cpfast::select_samples
