// select_samples(scores, keep, seed, epoch, stream, shuffle) -> indices [N], weights [N], count []
//
// scores    [N] float32, contiguous
// keep      in (0, 1]: the share of the below-mean samples that is kept
// indices   int64: the kept samples, ascending or (shuffle) in random order; -1 past count
// weights   float32, beside indices: 1 / keep where the score is below the mean, else 1;
//           0 past count
// count     int64: how many were kept
//
// InfoBatch's rule (arXiv 2303.04947): with M samples below the mean, a random
// floor(keep * M) of them are kept, and all the others. The mean is that of the finite scores;
// NaN and inf are below no mean, so their samples are kept.
//
// The result is a function of the scores and the five numbers alone, the same on every device
// and thread count: the mean adds tiles of kTile scores in float64, in order, and the below-mean
// sample of rank c is kept where pi(c) < floor(keep * M), pi being a keyed permutation of [0, M).
#pragma once

#include "checks.h"
#include "permutation.h"

#include <cmath>
#include <limits>

namespace cpfast::select_samples {

inline constexpr int64_t kTile = 4096;
// Beyond, a rank times a share no longer fits the arithmetic of Permutation.
inline constexpr int64_t kMaxSamples = int64_t{1} << 53;

inline void check_arguments(const Tensor& scores, double keep) {
  const char* op = "select_samples";
  check(scores.dim() == 1, op, "scores: expected shape [N], got ", shape_of(scores));
  check_vector(op, "scores", scores, scores.size(0), ScalarType::Float, scores);
  check(scores.size(0) < kMaxSamples, op, "scores: expected fewer than 2^53 samples, got ",
        scores.size(0));
  check(keep > 0 && keep <= 1, op, "keep: expected a share in (0, 1], got ", keep);
}

// The least float32 that is not below the mean: score < mean is score < threshold, for any
// float32 score. -inf, below which nothing is, where no score is finite.
CPFAST_HOST_DEVICE inline float threshold_of(double sum, int64_t finite) {
  if (finite == 0) return -INFINITY;
  const double mean = sum / static_cast<double>(finite);
  const float nearest = static_cast<float>(mean);
  return static_cast<double>(nearest) >= mean ? nearest : nextafterf(nearest, INFINITY);
}

CPFAST_HOST_DEVICE inline int64_t subset_size(double keep, int64_t below) {
  return static_cast<int64_t>(floor(keep * static_cast<double>(below)));
}

}  // namespace cpfast::select_samples
