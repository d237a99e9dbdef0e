// layer_statistics(params, refs, ref_sq_norms) -> [5, L] float32
// layer_rotation(params, refs, ref_sq_norms)   -> [L] float32
//
// params[l], refs[l]   any equal shape; float32, float64, float16 or bfloat16 in any mix; any
//                      strides (elements are paired by index, not by address); one device
// ref_sq_norms         optional [L] float64: sum of refs[l]^2, else computed in the same pass
// rows of the result   cosine_distance, l2_distance, norm, sign_flips (fraction), mean_abs
//
// Sums of differences d = w - w0, not of products w * w0, so that a rotation of 1e-12 is right
// too: with a = |w| and b = |w0|,
//     1 - cos = (|d|^2 - (a - b)^2) / (2ab)   and   a - b = (2 d.w0 + |d|^2) / (a + b).
// Where w and w0 are both zero (or empty) the distance is 0; where one of them is, 1.
// A sign flips where w and w0 have strictly opposite signs: a zero of either sign never does.
// NaN and Inf make their own layer NaN or Inf, and no other.
//
// The order of the additions is part of the contract. It depends on the sizes of the layers
// alone, never on threads or multiprocessors: tiles of tile_size() elements, at most
// kMaxAdditions float32 additions per accumulator, then float64, the tiles of a layer in order.
#pragma once

#include "checks.h"
#include "dispatch.h"

#include <cmath>
#include <cstdint>

namespace cpfast::layer_statistics {

inline constexpr int64_t kMaxAdditions = 128;
inline constexpr int64_t kSmallTile = 4096;
inline constexpr int64_t kLargeTile = 32768;
inline constexpr int64_t kSmallTotal = int64_t{4} << 20;

// Small tiles share few elements among many threads; large ones keep the partial sums few.
inline int64_t tile_size(int64_t total_elements) {
  return total_elements < kSmallTotal ? kSmallTile : kLargeTile;
}

struct Sums {
  double dd = 0;     // sum of d^2
  double d0 = 0;     // sum of d * w0
  double ww = 0;     // sum of w^2
  double rr = 0;     // sum of w0^2
  double abs = 0;    // sum of |w|
  double flips = 0;  // number of sign flips

  CPFAST_HOST_DEVICE void add(const Sums& other) {
    dd += other.dd;
    d0 += other.d0;
    ww += other.ww;
    rr += other.rr;
    abs += other.abs;
    flips += other.flips;
  }
};

CPFAST_HOST_DEVICE inline float cosine_distance(const Sums& s) {
  if (s.ww == 0 || s.rr == 0) return s.ww == s.rr ? 0.0f : 1.0f;
  const double a = sqrt(s.ww), b = sqrt(s.rr);
  const double difference = (2 * s.d0 + s.dd) / (a + b);
  const double distance = (s.dd - difference * difference) / (2 * a * b);
  // Comparisons in this order let NaN through.
  return static_cast<float>(distance < 0 ? 0 : distance > 2 ? 2 : distance);
}

inline constexpr int64_t kRows = 5;

// Writes column `layer` of the [5, layers] result.
CPFAST_HOST_DEVICE inline void finish(const Sums& s, int64_t numel, float* out, int64_t layer,
                                      int64_t layers) {
  const double n = numel > 0 ? static_cast<double>(numel) : 1.0;
  out[0 * layers + layer] = cosine_distance(s);
  out[1 * layers + layer] = static_cast<float>(sqrt(s.dd));
  out[2 * layers + layer] = static_cast<float>(sqrt(s.ww));
  out[3 * layers + layer] = static_cast<float>(s.flips / n);
  out[4 * layers + layer] = static_cast<float>(s.abs / n);
}

// Are elements of equal index at equal offsets, with no gaps? Then a linear walk pairs them.
inline bool walks_linearly(const Tensor& a, const Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  const int64_t dims = a.dim();
  for (int64_t i = 0; i < dims; ++i)
    if (a.size(i) > 1 && a.stride(i) != b.stride(i)) return false;
  // Dense means that the strides, in some order of the dimensions, are running products.
  int64_t expected = 1;
  std::vector<bool> used(dims, false);
  for (int64_t pass = 0; pass < dims; ++pass)
    for (int64_t i = 0; i < dims; ++i)
      if (!used[i] && a.size(i) > 1 && a.stride(i) == expected) {
        used[i] = true;
        expected *= a.size(i);
      }
  return expected == a.numel();
}

// Hidden as torch's own Tensor is, or the compiler warns of the difference.
struct __attribute__((visibility("hidden"))) Pair {
  Tensor param, ref;
};

// Checks all arguments; copies only those pairs that a linear walk would not pair.
inline std::vector<Pair> checked_pairs(const char* op, const std::vector<Tensor>& params,
                                       const std::vector<Tensor>& refs,
                                       const std::optional<Tensor>& ref_sq_norms) {
  check(!params.empty(), op, "params: expected at least one tensor, got an empty list");
  check(params.size() == refs.size(), op, "refs: expected ", params.size(),
        " tensors, as many as params, got ", refs.size());
  std::vector<Pair> pairs;
  pairs.reserve(params.size());
  for (size_t l = 0; l < params.size(); ++l) {
    const Tensor &w = params[l], &w0 = refs[l];
    check(same_device(w, params[0]), op, "params[", l, "]: expected device ",
          device_of(params[0]), " as params[0], got ", device_of(w));
    check(same_device(w0, params[0]), op, "refs[", l, "]: expected device ", device_of(params[0]),
          " as params[0], got ", device_of(w0));
    check(same_shape(w, w0), op, "refs[", l, "]: expected shape ", shape_of(w), " as params[", l,
          "], got ", shape_of(w0));
    check(is_floating(w.scalar_type()), op, "params[", l,
          "]: expected float32, float64, float16 or bfloat16, got ", dtype_name(w.scalar_type()));
    check(is_floating(w0.scalar_type()), op, "refs[", l,
          "]: expected float32, float64, float16 or bfloat16, got ", dtype_name(w0.scalar_type()));
    if (walks_linearly(w, w0))
      pairs.push_back({w, w0});
    else
      pairs.push_back({torch::stable::contiguous(w), torch::stable::contiguous(w0)});
  }
  if (ref_sq_norms)
    check_vector(op, "ref_sq_norms", *ref_sq_norms, static_cast<int64_t>(params.size()),
                 ScalarType::Double, params[0]);
  return pairs;
}

}  // namespace cpfast::layer_statistics
