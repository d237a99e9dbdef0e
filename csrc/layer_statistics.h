// layer_statistics(params, refs, ref_sq_norms) -> [5, L] float32
// layer_rotation(params, refs, ref_sq_norms)   -> [L] float32
// layer_sums(params, refs, ratio)              -> [6, L] float64, which the others finish
//
// params[l], refs[l]   any equal shape; float32, float64, float16 or bfloat16 in any mix; any
//                      strides (elements are paired by index, not by address); one device
// ref_sq_norms         optional [L] float64: sum of refs[l]^2, else computed in the same pass
// rows of the result   cosine_distance, l2_distance, norm, sign_flips (fraction), mean_abs
// ratio                optional [L] float64, rounded by rounded_ratio(); 1 where it is not given
// rows of the sums     those of Sums, below
//
// plan_layers(params, refs) -> (plan, layers, tiles, tile)
// planned_layer_statistics(plan, layers, tiles, tile, ref_sq_norms) -> [5, L] float32
// planned_layer_rotation(plan, layers, tiles, tile, ref_sq_norms)   -> [L] float32
// planned_layer_sums(plan, layers, tiles, tile, ratio)              -> [6, L] float64
// record_layer_rotation(plan, layers, tiles, tile, ref_sq_norms, history, cursor)
//
// plan      [bytes] uint8 on the device of the layers: the table of them, by address, and on CUDA
//           the scratch of one call. Equal to the bit with the ops above, which make the same table
//           and throw it away. Whoever holds a plan keeps the layers where they lie, and on CUDA
//           makes its calls one after another, on one stream or on streams that wait.
// history   [R, L] float32: row (cursor mod R) is written
// cursor    [] int64, beside it; counted up by the kernel, so that replays of a CUDA graph fill
//           successive rows. A negative one is refused on the CPU; on CUDA, where nobody can ask,
//           it is taken modulo R as if it were unsigned: no row outside is ever written
//
// Sums of differences d = w - s w0, not of products w * w0, so that a rotation of 1e-12 is right
// too: with a = |w|, b = |w0| and a number s near a / b,
//     1 - cos = (|d|^2 - (a - sb)^2) / (2sab)   and   a - sb = (2s d.w0 + |d|^2) / (a + sb).
// An error e of the sums, relative, becomes one of e (1 - sb/a)^2 / 2 of the distance, absolute: s
// is within 3.2 % of a / b. It is a / b rounded to six significant bits, and 1 within 1/32 of 1
// (quantised_ratio), and so a function of the layer alone. The first pass over the layers guesses
// it: 1, or in a plan what it was in the last call. Layers where the guess was wrong get another
// pass. The sums of w^2 and w0^2, of which s is made, are the same whatever the guess.
//
// Squares of float32 that leave its range, either way, are noticed by their sums: such a layer gets
// a pass in float64 (is_in_range). The distance is then right for every finite float32.
//
// Where w and w0 are both zero (or empty) the distance is 0; where one of them is, 1. Where a layer
// holds NaN or Inf it is NaN, whatever the other is, as it is where the squares of float64 weights
// leave the range of float64. No layer spoils another.
// A sign flips where w and w0 have strictly opposite signs: a zero of either sign never does.
//
// The order of the additions is part of the contract. It depends on the sizes of the layers
// alone, never on threads or multiprocessors: tiles of tile_size() elements, at most
// kMaxAdditions float32 additions per accumulator, then float64, the tiles of a layer in an order
// of their own.
#pragma once

#include "checks.h"
#include "dispatch.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace cpfast::layer_statistics {

inline constexpr int64_t kMaxAdditions = 128;
inline constexpr int64_t kSmallTile = 4096;
inline constexpr int64_t kLargeTile = 32768;
// How many tiles there may be before they double: those below kLargeTile, and all others.
inline constexpr int64_t kFewTiles = 2048, kMaxFullTiles = 16384;

// Small tiles share few elements evenly among many blocks; large ones keep the partial sums few:
// under 1 MB, whatever the model.
inline int64_t tile_size(int64_t total_elements) {
  int64_t tile = kSmallTile;
  while (tile < kLargeTile && total_elements / tile >= kFewTiles) tile *= 2;
  while (total_elements / tile > kMaxFullTiles) tile *= 2;
  return tile;
}

// A layer without elements has a tile without elements: somebody must write its result.
CPFAST_HOST_DEVICE inline int64_t tiles_of(int64_t numel, int64_t tile) {
  return numel > 0 ? (numel + tile - 1) / tile : 1;
}

struct Layer {
  const void *w, *w0;
  int64_t numel, first_tile, first_element;
  ScalarType dtype, ref_dtype;
  bool is_due, in_float64;  // on CUDA: whether the next launch goes over it again, and how
  float ratio;              // s of the next pass

  CPFAST_HOST_DEVICE bool is_float64() const {
    return dtype == ScalarType::Double || ref_dtype == ScalarType::Double;
  }
};

// One pass over one layer.
struct Pass {
  double ratio;
  bool in_float64;
};

// The rows of layer_sums.
enum SumIndex : int { kDD, kD0, kWW, kRR, kAbs, kFlips, kSums };

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

static_assert(sizeof(Sums) == kSums * sizeof(double));

// Six significant bits, by integers: the same on every device.
CPFAST_HOST_DEVICE inline double rounded_ratio(double ratio) {
  constexpr int64_t kDropped = int64_t{1} << 47;
  int64_t bits;
  memcpy(&bits, &ratio, sizeof(bits));
  bits = (bits + kDropped / 2) & -kDropped;
  memcpy(&ratio, &bits, sizeof(bits));
  return ratio;
}

CPFAST_HOST_DEVICE inline double quantised_ratio(const Sums& s) {
  // The common case, without a division and a root: within 1/32 of 1.
  constexpr double kLeast = (31.0 * 31) / (32 * 32), kMost = (33.0 * 33) / (32 * 32);
  if (s.ww >= kLeast * s.rr && s.ww <= kMost * s.rr) return 1;
  const double ratio = sqrt(s.ww) / sqrt(s.rr);  // the quotient of squares may leave float64
  // Comparisons that NaN fails.
  return ratio > 0 && ratio < HUGE_VAL ? rounded_ratio(ratio) : 1;
}

// Whether squares of float32 keep their digits: none of them, nor the square of a difference, has
// overflowed, and those of elements of the mean size, or of the spacing of floats there (2^-24 of
// it), are normal numbers.
CPFAST_HOST_DEVICE inline bool is_in_range(double square_norm, int64_t numel) {
  return square_norm >= 0x1p-64 * static_cast<double>(numel) && square_norm <= 0x1p120;
}

// What a call is given, and need not find out.
struct Given {
  bool norms, ratio;
};

// Whether the layer needs another pass, after one that gave these sums: then `pass` becomes it.
CPFAST_HOST_DEVICE inline bool needs_another(const Layer& layer, const Sums& s, const Given& given,
                                             Pass& pass) {
  if (!pass.in_float64 && !layer.is_float64()) {
    // A norm that is given is of float64: its zero is one.
    const bool refs_will_do = is_in_range(s.rr, layer.numel) || (given.norms && s.rr == 0);
    const bool ratio_will_do = !given.ratio || pass.ratio * pass.ratio * s.rr <= 0x1p120;
    pass.in_float64 = !(is_in_range(s.ww, layer.numel) && refs_will_do && ratio_will_do);
    if (pass.in_float64) return true;
  }
  if (given.ratio) return false;
  const double guess = pass.ratio;
  pass.ratio = quantised_ratio(s);
  return pass.ratio != guess;
}

CPFAST_HOST_DEVICE inline float cosine_distance(const Sums& s, double ratio) {
  // NaN and Inf of the weights are left in one of the sums at least. NaN fails every comparison.
  if (!(fabs(s.dd) < HUGE_VAL && fabs(s.d0) < HUGE_VAL && s.ww < HUGE_VAL && s.rr < HUGE_VAL))
    return NAN;
  if (s.ww == 0 || s.rr == 0) return s.ww == s.rr ? 0.0f : 1.0f;
  const double a = sqrt(s.ww), b = ratio * sqrt(s.rr);
  const double difference = (2 * ratio * s.d0 + s.dd) / (a + b);
  const double distance = (s.dd - difference * difference) / (2 * a * b);
  // Comparisons in this order let NaN through.
  return static_cast<float>(distance < 0 ? 0 : distance > 2 ? 2 : distance);
}

// |w - w0|, of sums of w - s w0. Where s is not 1 the terms are at most a few times the result.
CPFAST_HOST_DEVICE inline double l2_distance(const Sums& s, double ratio) {
  if (ratio == 1) return sqrt(s.dd);
  const double more = ratio - 1, square = s.dd + more * (2 * s.d0 + more * s.rr);
  return sqrt(square < 0 ? 0 : square);
}

inline constexpr int64_t kRows = 5;

// Writes column `layer` of the [5, layers] result.
CPFAST_HOST_DEVICE inline void finish(const Sums& s, double ratio, int64_t numel, float* out,
                                      int64_t layer, int64_t layers) {
  const double n = numel > 0 ? static_cast<double>(numel) : 1.0;
  out[0 * layers + layer] = cosine_distance(s, ratio);
  out[1 * layers + layer] = static_cast<float>(l2_distance(s, ratio));
  out[2 * layers + layer] = static_cast<float>(sqrt(s.ww));
  out[3 * layers + layer] = static_cast<float>(s.flips / n);
  out[4 * layers + layer] = static_cast<float>(s.abs / n);
}

// Writes column `layer` of the [6, layers] sums.
CPFAST_HOST_DEVICE inline void store_sums(const Sums& s, double* out, int64_t layer,
                                          int64_t layers) {
  out[kDD * layers + layer] = s.dd;
  out[kD0 * layers + layer] = s.d0;
  out[kWW * layers + layer] = s.ww;
  out[kRR * layers + layer] = s.rr;
  out[kAbs * layers + layer] = s.abs;
  out[kFlips * layers + layer] = s.flips;
}

// The row of a ring, inside for every value of its cursor.
CPFAST_HOST_DEVICE inline int64_t row_of(int64_t cursor, int64_t rows) {
  return static_cast<int64_t>(static_cast<uint64_t>(cursor) % static_cast<uint64_t>(rows));
}

// Read once a tensor: each is a call into libtorch.
struct Layout {
  explicit Layout(const Tensor& tensor)
      : on_cpu(tensor.is_cpu()),
        device(on_cpu ? -1 : tensor.get_device_index()),
        dtype(tensor.scalar_type()),
        numel(tensor.numel()),
        sizes(tensor.sizes()),
        strides(tensor.strides()) {}

  bool on_cpu;
  int32_t device;
  ScalarType dtype;
  int64_t numel;
  torch::headeronly::IntHeaderOnlyArrayRef sizes, strides;
};

inline bool same_strides(const Layout& a, const Layout& b) {
  for (size_t i = 0; i < a.sizes.size(); ++i)
    if (a.sizes[i] > 1 && a.strides[i] != b.strides[i]) return false;
  return true;
}

// Dense means that the strides, in some order of the dimensions, are running products: a linear
// walk meets every element once. The order searched first is that of contiguous tensors.
inline bool is_dense(const Layout& tensor) {
  const size_t dims = tensor.sizes.size();
  int64_t expected = 1;
  for (bool found = true; found && expected < tensor.numel;) {
    found = false;
    for (size_t i = dims; i-- > 0;)
      if (tensor.sizes[i] > 1 && tensor.strides[i] == expected) {
        expected *= tensor.sizes[i];
        found = true;
      }
  }
  return expected == tensor.numel || tensor.numel == 0;
}

// A copy whose elements lie in memory in the order of those of `like`, which is dense.
inline Tensor with_strides_of(const Tensor& like, const Tensor& tensor) {
  int32_t dtype = 0, device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(like.dim(), like.sizes().data(),
                                                  like.strides().data(), dtype, device_type,
                                                  tensor.get_device_index(), &handle));
  Tensor copy(handle);
  torch::stable::copy_(copy, tensor);
  return copy;
}

// Hidden as torch's own Tensor is, or the compiler warns of the difference.
struct __attribute__((visibility("hidden"))) Table {
  std::vector<Layer> layers;
  std::vector<Tensor> copies;  // of those that a linear walk would not pair
  int64_t tiles = 0, tile = 0;
};

// Checks the lists, and lays out their tiles.
inline Table checked_layers(const char* op, const std::vector<Tensor>& params,
                            const std::vector<Tensor>& refs) {
  check(!params.empty(), op, "params: expected at least one tensor, got an empty list");
  check(params.size() == refs.size(), op, "refs: expected ", params.size(),
        " tensors, as many as params, got ", refs.size());
  Table table;
  table.layers.reserve(params.size());
  const Layout first(params[0]);
  int64_t total = 0;
  for (size_t l = 0; l < params.size(); ++l) {
    const Layout w(params[l]), w0(refs[l]);
    const auto check_one = [&](const char* name, const Tensor& tensor, const Layout& layout) {
      if (layout.on_cpu != first.on_cpu || layout.device != first.device)
        fail(op, name, "[", l, "]: expected device ", device_of(params[0]), " as params[0], got ",
             device_of(tensor));
      if (!is_floating(layout.dtype))
        fail(op, name, "[", l, "]: expected float32, float64, float16 or bfloat16, got ",
             dtype_name(layout.dtype));
    };
    check_one("params", params[l], w);
    check_one("refs", refs[l], w0);
    if (!std::equal(w.sizes.begin(), w.sizes.end(), w0.sizes.begin(), w0.sizes.end()))
      fail(op, "refs[", l, "]: expected shape ", shape_of(params[l]), " as params[", l, "], got ",
           shape_of(refs[l]));
    Layer layer{.numel = w.numel,
                .first_element = total,
                .dtype = w.dtype,
                .ref_dtype = w0.dtype,
                .ratio = 1};
    const bool dense = is_dense(w);
    if (dense && (w.numel == 0 || same_strides(w, w0))) {
      layer.w = params[l].const_data_ptr();
      layer.w0 = refs[l].const_data_ptr();
    } else {
      const Tensor walked = dense ? params[l] : torch::stable::contiguous(params[l]);
      table.copies.push_back(walked);
      table.copies.push_back(with_strides_of(walked, refs[l]));
      layer.w = walked.const_data_ptr();
      layer.w0 = table.copies.back().const_data_ptr();
    }
    total += w.numel;
    table.layers.push_back(layer);
  }
  table.tile = tile_size(total);
  for (Layer& layer : table.layers) {
    layer.first_tile = table.tiles;
    table.tiles += tiles_of(layer.numel, table.tile);
  }
  return table;
}

// A plan cannot copy at each call: whoever makes it brings the layers into one order before.
inline void check_walks(const char* op, const Table& table) {
  check(table.copies.empty(), op, "params, refs: expected dense tensors of equal strides, got ",
        table.copies.size() / 2, " pairs that are not");
}

inline void check_norms(const char* op, const std::optional<Tensor>& ref_sq_norms, int64_t layers,
                        const Tensor& like) {
  if (ref_sq_norms)
    check_vector(op, "ref_sq_norms", *ref_sq_norms, layers, ScalarType::Double, like);
}

inline void check_ratio(const char* op, const std::optional<Tensor>& ratio, int64_t layers,
                        const Tensor& like) {
  if (ratio) check_vector(op, "ratio", *ratio, layers, ScalarType::Double, like);
}

// What was planned, as the planned ops get it.
inline void check_plan(const char* op, const Tensor& plan, int64_t bytes) {
  check(plan.scalar_type() == ScalarType::Byte && plan.dim() == 1 && plan.is_contiguous(), op,
        "plan: expected [bytes] uint8 of plan_layers, got ", dtype_name(plan.scalar_type()), " ",
        shape_of(plan));
  check(plan.numel() >= bytes, op, "plan: expected ", bytes, " bytes or more, got ", plan.numel());
}

inline void check_history(const char* op, const Tensor& history, const Tensor& cursor,
                          int64_t layers, const Tensor& plan) {
  check(history.dim() == 2 && history.size(0) > 0 && history.size(1) == layers &&
            history.scalar_type() == ScalarType::Float && history.is_contiguous(),
        op, "history: expected contiguous float32 [R, ", layers, "], R > 0, got ",
        dtype_name(history.scalar_type()), " ", shape_of(history));
  check(cursor.dim() == 0 && cursor.scalar_type() == ScalarType::Long, op,
        "cursor: expected int64 [], got ", dtype_name(cursor.scalar_type()), " ", shape_of(cursor));
  check(same_device(history, plan), op, "history: expected device ", device_of(plan), ", got ",
        device_of(history));
  check(same_device(cursor, plan), op, "cursor: expected device ", device_of(plan), ", got ",
        device_of(cursor));
}

}  // namespace cpfast::layer_statistics
