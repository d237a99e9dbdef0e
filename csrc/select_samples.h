// select_samples(scores, keep, seed, epoch, stream, shuffle, exact, dtype)
//     -> indices [N], weights [N], count []
//
// scores    [N] float32, contiguous
// keep      in (0, 1]: the share of the below-mean samples that is kept
// exact     whether that share is one of their number, or a probability for each
// dtype     int64 or (N < 2^31) int32, that of the indices
// indices   the kept samples, ascending or (shuffle) in random order; -1 past count
// weights   float32, beside indices: 1 / keep where the score is below the mean, else 1;
//           0 past count
// count     int64: how many were kept
//
// InfoBatch's rule (arXiv 2303.04947): with M samples below the mean, a random
// floor(keep * M) of them are kept, and all the others. The mean is that of the finite scores;
// NaN and inf are below no mean, so their samples are kept.
//
// The result is a function of the scores and the numbers alone, the same on every device and
// thread count:
// - The mean adds in float64, in a fixed order (Lanes), first the scores of a tile of kSumTile,
//   then the tiles.
// - Exact: the below-mean sample of rank c is kept where pi(c) < floor(keep * M), pi being a keyed
//   permutation of [0, M). Otherwise a below-mean sample is kept where its 32-bit number is less
//   than ceil(keep * 2^32): word (id / 32) % 4 of what Philox makes of the counter
//   id / 128 * 32 + id % 32, four rows of 32 samples for 32 lanes, whose every word is used.
// - Position p of the random order holds ascending[pi(p)], pi being a keyed permutation of
//   [0, count): what shuffled_slice evaluates for a few positions at a time. Written out, it needs
//   no second buffer, for the sample of rank r goes to position pi^-1(r).
//
// Besides its results the op holds less than 0.01 bytes a sample, and 64 KB on the CPU.
#pragma once

#include "checks.h"
#include "permutation.h"
#include "philox.h"

#include <limits>

namespace cpfast::select_samples {

inline constexpr int64_t kTile = 4096;  // of what is ranked and written at a time
inline constexpr int64_t kSumTile = 16384;
// Addend i goes to lane i % kSumLanes. A lane adds its own in order, and then lane l adds that of
// lane l + half, for half = kSumLanes / 2, ... 2, 1.
inline constexpr int kSumLanes = 1024;
// Beyond, a rank times a share no longer fits the arithmetic of Permutation.
inline constexpr int64_t kMaxSamples = int64_t{1} << 53;

inline void check_arguments(const Tensor& scores, double keep, ScalarType dtype) {
  const char* op = "select_samples";
  check(scores.dim() == 1, op, "scores: expected shape [N], got ", shape_of(scores));
  check_vector(op, "scores", scores, scores.size(0), ScalarType::Float, scores);
  check(scores.size(0) < kMaxSamples, op, "scores: expected fewer than 2^53 samples, got ",
        scores.size(0));
  check(keep > 0 && keep <= 1, op, "keep: expected a share in (0, 1], got ", keep);
  check(dtype == ScalarType::Long || dtype == ScalarType::Int, op,
        "dtype: expected int64 or int32, got ", dtype_name(dtype));
  check(dtype == ScalarType::Long || scores.size(0) <= std::numeric_limits<int32_t>::max(), op,
        "dtype: int32 cannot index ", scores.size(0), " samples, 2^31 or more; use int64");
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

// A sample is drawn where its number is less: 2^32, all of them, for keep = 1.
inline uint64_t drawn_below(double keep) {
  return static_cast<uint64_t>(std::ceil(keep * 4294967296.0));
}

}  // namespace cpfast::select_samples
