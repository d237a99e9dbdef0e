// The sums over the logits of a row, which lanes add apart and merge in a fixed order.
#pragma once

#include "../scored_cross_entropy.h"

#include "device.h"

namespace cpfast {

// exp of a difference to a larger logit, by the hardware's exponential of 2: within 2 ulp near 0,
// where it counts. (One multiply-add, from which log2(e) times the larger logit is subtracted,
// would save an instruction, and be wrong by 1e-4 where logits are 1,000.)
__device__ inline float exp_below(float x) { return exp2_approx(x * 1.44269504f); }
__device__ inline double exp_below(double x) { return exp(x); }

// A distance in 32 bits: as it is, or far.
__device__ inline int near(int64_t distance) {
  return static_cast<int>(max(int64_t{-1} << 30, min(distance, int64_t{1} << 30)));
}

// With the target left out and the largest logit subtracted.
template <typename Real>
struct RowSums {
  Real before = kLowest<Real>, after = kLowest<Real>;  // largest on either side of the target
  Real max = kLowest<Real>;                            // the larger of the two
  double s1 = 0, s2 = 0;                               // of exp(x - max), and of its square
  double total = 0;                                    // of (x - x_y) kShare, x_y the target's

  // x[u] holds kCount classes from at + u * kStep on, or kLowest where those are none before `end`;
  // the target is kLowest afterwards.
  template <int kStep, int kVectors, int kCount>
  __device__ void observe(Real (&x)[kVectors][kCount], int64_t at, int64_t target, int64_t end,
                          bool with_total, Real x_y) {
    const int first_own = near(target - at), left = near(end - at);
    constexpr Real kShare = scored_cross_entropy::kShare;
    const Real share_y = x_y * kShare;
    Real sum = 0;
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      if (with_total && u * kStep < left) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) sum += x[u][k] * kShare - share_y;
      }
      const int own = first_own - u * kStep;
      if (static_cast<unsigned>(own) < kCount) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          if (k < own) before = fmax(before, x[u][k]);
          if (k > own) after = fmax(after, x[u][k]);
          if (k == own) x[u][k] = kLowest<Real>;
        }
      } else {
        // fmax passes NaN over; the sums will show it.
        Real largest = x[u][0];
#pragma unroll
        for (int k = 1; k < kCount; ++k) largest = fmax(largest, x[u][k]);
        if (own < 0)
          after = fmax(after, largest);
        else
          before = fmax(before, largest);
      }
    }
    total += sum;
  }

  // Makes sums relative to the largest logit observed, and returns what to subtract from logits.
  __device__ Real settle() {
    rescale(fmax(before, after));
    // exp(-inf - -inf) would be NaN where there is nothing to add yet.
    return max == kLowest<Real> ? Real(0) : max;
  }

  // Leaves the exponentials in x.
  template <int kVectors, int kCount>
  __device__ void add(Real (&x)[kVectors][kCount], Real shift) {
    Real e1 = 0, e2 = 0;
#pragma unroll
    for (int u = 0; u < kVectors; ++u)
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        x[u][k] = exp_below(x[u][k] - shift);
        e1 += x[u][k];
        e2 += x[u][k] * x[u][k];
      }
    s1 += e1;
    s2 += e2;
  }

  __device__ void rescale(Real larger) {
    if (larger == max) return;
    const double factor = exp(max - larger);
    s1 *= factor;
    s2 *= factor * factor;
    max = larger;
  }

  // Leaves the sums of kLanes neighbouring lanes in each of them.
  template <int kLanes>
  __device__ void merge_lanes(bool with_total) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      before = fmax(before, __shfl_xor_sync(kAllLanes, before, offset));
      after = fmax(after, __shfl_xor_sync(kAllLanes, after, offset));
    }
    rescale(fmax(before, after));
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      s1 += __shfl_xor_sync(kAllLanes, s1, offset);
      s2 += __shfl_xor_sync(kAllLanes, s2, offset);
      if (with_total) total += __shfl_xor_sync(kAllLanes, total, offset);
    }
  }

  // Leaves the sums of the block in its first warp. Every warp must have merged its lanes.
  template <int kWarps>
  __device__ void merge_warps(bool with_total) {
    __shared__ Real befores[kWarps], afters[kWarps];
    __shared__ double s1s[kWarps], s2s[kWarps], totals[kWarps];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) {
      befores[warp] = before;
      afters[warp] = after;
      s1s[warp] = s1;
      s2s[warp] = s2;
      totals[warp] = total;
    }
    __syncthreads();
    if (warp != 0) return;
    *this = RowSums();
    if (lane < kWarps) {
      before = befores[lane];
      after = afters[lane];
      max = fmax(before, after);
      s1 = s1s[lane];
      s2 = s2s[lane];
      total = totals[lane];
    }
    merge_lanes<32>(with_total);
  }
};

}  // namespace cpfast
