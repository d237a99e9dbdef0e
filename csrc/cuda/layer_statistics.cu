#include "../layer_statistics.h"

#include "device.h"
#include "launch.h"

#include <algorithm>

namespace cpfast::layer_statistics {
namespace {

constexpr int kThreads = 256;
constexpr int kSums = sizeof(Sums) / sizeof(double);
constexpr int kFinishWarps = 4;
constexpr int kStagedTiles = 128;

struct Layer {
  const void *w, *w0;
  int64_t numel, first_tile;
  ScalarType dtype, ref_dtype;
};

// What the kernels read: a table of all layers, and the layer of every tile.
struct Table {
  Layer* layers;
  int32_t* layer_of_tile;
  int64_t layer_count, tile_count, tile_size;
  double* partials;  // [tile_count, kSums]
};

// Layers that travel as an argument of a kernel: no copy from host memory, which would have to
// stay in place until the stream gets there. 4 KB of arguments is what every driver takes.
constexpr int kChunk = 96;
struct Chunk {
  Layer layers[kChunk];
};
static_assert(sizeof(Chunk) + sizeof(Table) + sizeof(int64_t) <= 4096);

__global__ void __launch_bounds__(kThreads)
    write_table(const __grid_constant__ Chunk chunk, int64_t first_layer,
                const __grid_constant__ Table table) {
  const int64_t layer = first_layer + blockIdx.x;
  const int64_t first_tile = chunk.layers[blockIdx.x].first_tile;
  const int64_t tiles = (chunk.layers[blockIdx.x].numel + table.tile_size - 1) / table.tile_size;
  if (threadIdx.x == 0) table.layers[layer] = chunk.layers[blockIdx.x];
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads)
    table.layer_of_tile[first_tile + t] = static_cast<int32_t>(layer);
}

template <bool kAll, typename Real>
struct Accumulator {
  Real dd = 0, d0 = 0, ww = 0, rr = 0, abs = 0;
  int flips = 0;

  __device__ void add(Real w, Real w0) {
    const Real d = w - w0;
    dd += d * d;
    d0 += d * w0;
    ww += w * w;
    rr += w0 * w0;
    if constexpr (kAll) {
      abs += fabs(w);
      flips += (w < 0 && w0 > 0) || (w > 0 && w0 < 0);
    }
  }

  __device__ void add_to(double (&sums)[kSums]) const {
    sums[0] += dd;
    sums[1] += d0;
    sums[2] += ww;
    sums[3] += rr;
    sums[4] += abs;
    sums[5] += flips;
  }
};

// The elements of a tile that one thread adds, in two accumulators or in one.
static_assert(kLargeTile / kThreads <= kMaxAdditions);

// Which thread adds which elements depends on their indices alone, not on their addresses.
template <bool kAll, bool kAligned, typename W, typename R>
__device__ void add_tile(const W* w, const R* w0, int64_t n, double (&sums)[kSums]) {
  using Real = Compute<W>;
  static_assert(sizeof(W) <= sizeof(R) && std::is_same_v<Real, Compute<R>>);
  // 16 elements of each stream in flight a thread, as a tile of kSmallTile has; half of that where
  // registers would not suffice.
  constexpr int kVector = kWidth<W>;
  constexpr int kUnroll = (std::is_same_v<Real, double> || !kAligned ? 8 : 16) / kVector;
  const int64_t vectors = n / kVector;

  Accumulator<kAll, Real> even, odd;
  const auto add = [&](const Real(&a)[kVector], const Real(&b)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; i += 2) {
      even.add(a[i], b[i]);
      odd.add(a[i + 1], b[i + 1]);
    }
  };
  int64_t v = threadIdx.x;
  for (; v + (kUnroll - 1) * kThreads < vectors; v += kUnroll * kThreads) {
    Real a[kUnroll][kVector], b[kUnroll][kVector];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      load<kAligned>(w + (v + u * kThreads) * kVector, a[u]);
      load<kAligned>(w0 + (v + u * kThreads) * kVector, b[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) add(a[u], b[u]);
  }
  for (; v < vectors; v += kThreads) {
    Real a[kVector], b[kVector];
    load<kAligned>(w + v * kVector, a);
    load<kAligned>(w0 + v * kVector, b);
    add(a, b);
  }
  const int64_t last = vectors * kVector + threadIdx.x;
  if (last < n) even.add(static_cast<Real>(w[last]), static_cast<Real>(w0[last]));
  even.add_to(sums);
  odd.add_to(sums);
}

template <bool kAll, typename W, typename R>
__device__ void add_tile(const Layer& layer, int64_t offset, int64_t n, double (&sums)[kSums]) {
  const W* w = static_cast<const W*>(layer.w) + offset;
  const R* w0 = static_cast<const R*>(layer.w0) + offset;
  if (is_aligned(w) && is_aligned(w0))
    add_tile<kAll, true>(w, w0, n, sums);
  else
    add_tile<kAll, false>(w, w0, n, sums);
}

template <typename Real>
__device__ Real load_as(ScalarType dtype, const void* from, int64_t i) {
  switch (dtype) {
    case ScalarType::Double: return static_cast<Real>(static_cast<const double*>(from)[i]);
    case ScalarType::Half: return static_cast<Real>(static_cast<const c10::Half*>(from)[i]);
    case ScalarType::BFloat16: return static_cast<Real>(static_cast<const c10::BFloat16*>(from)[i]);
    default: return static_cast<Real>(static_cast<const float*>(from)[i]);
  }
}

template <bool kAll, typename Real>
__device__ void add_mixed_tile(const Layer& layer, int64_t offset, int64_t n,
                               double (&sums)[kSums]) {
  Accumulator<kAll, Real> accumulator;
#pragma unroll 4
  for (int64_t i = offset + threadIdx.x; i < offset + n; i += kThreads)
    accumulator.add(load_as<Real>(layer.dtype, layer.w, i),
                    load_as<Real>(layer.ref_dtype, layer.w0, i));
  accumulator.add_to(sums);
}

template <bool kAll>
__global__ void __launch_bounds__(kThreads, 3) sum_tiles(const __grid_constant__ Table table) {
  const Layer layer = table.layers[table.layer_of_tile[blockIdx.x]];
  const int64_t offset = (int64_t{blockIdx.x} - layer.first_tile) * table.tile_size;
  const int64_t n = min(table.tile_size, layer.numel - offset);
  const auto both = [&](ScalarType a, ScalarType b) {
    return layer.dtype == a && layer.ref_dtype == b;
  };
  using enum ScalarType;
  double sums[kSums] = {};
  if (both(Float, Float)) add_tile<kAll, float, float>(layer, offset, n, sums);
  else if (both(BFloat16, Float)) add_tile<kAll, c10::BFloat16, float>(layer, offset, n, sums);
  else if (both(BFloat16, BFloat16))
    add_tile<kAll, c10::BFloat16, c10::BFloat16>(layer, offset, n, sums);
  else if (both(Half, Float)) add_tile<kAll, c10::Half, float>(layer, offset, n, sums);
  else if (both(Double, Double)) add_tile<kAll, double, double>(layer, offset, n, sums);
  else if (layer.dtype == Double || layer.ref_dtype == Double)
    add_mixed_tile<kAll, double>(layer, offset, n, sums);
  else
    add_mixed_tile<kAll, float>(layer, offset, n, sums);

  __shared__ double warps[kThreads / 32][kSums];
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    const double sum = kAll || s < 4 ? warp_sum(sums[s]) : 0.0;
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][s] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kSums) {
    double sum = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += warps[warp][threadIdx.x];
    table.partials[int64_t{blockIdx.x} * kSums + threadIdx.x] = sum;
  }
}

// A warp a layer; each of its first lanes adds one of the sums over the tiles, in order.
template <bool kAll>
__global__ void __launch_bounds__(32 * kFinishWarps)
    finish_layers(const __grid_constant__ Table table, const double* ref_sq_norms, float* out) {
  __shared__ double staged[kFinishWarps][kStagedTiles * kSums];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t layer = int64_t{blockIdx.x} * kFinishWarps + warp;
  if (layer >= table.layer_count) return;
  const int64_t numel = table.layers[layer].numel;
  const double* partials = table.partials + table.layers[layer].first_tile * kSums;
  const int64_t count = (numel + table.tile_size - 1) / table.tile_size * kSums;

  double sum = 0;
  for (int64_t base = 0; base < count; base += kStagedTiles * kSums) {
    const int n = static_cast<int>(min(int64_t{kStagedTiles * kSums}, count - base));
#pragma unroll 8
    for (int i = lane; i < n; i += 32) staged[warp][i] = partials[base + i];
    __syncwarp();
    if (lane < kSums) {
#pragma unroll 8
      for (int i = lane; i < n; i += kSums) sum += staged[warp][i];
    }
    __syncwarp();
  }

  Sums sums;
  sums.dd = sum;  // that of lane 0, which alone writes
  sums.d0 = __shfl_sync(kAllLanes, sum, 1);
  sums.ww = __shfl_sync(kAllLanes, sum, 2);
  sums.rr = __shfl_sync(kAllLanes, sum, 3);
  sums.abs = __shfl_sync(kAllLanes, sum, 4);
  sums.flips = __shfl_sync(kAllLanes, sum, 5);
  if (lane != 0) return;
  if (ref_sq_norms) sums.rr = ref_sq_norms[layer];
  if constexpr (kAll)
    finish(sums, numel, out, layer, table.layer_count);
  else
    out[layer] = cosine_distance(sums);
}

template <bool kAll>
void launch_all(const std::vector<Pair>& pairs, const std::optional<Tensor>& ref_sq_norms,
                Tensor& out) {
  const Launcher launch(out);
  int64_t total = 0;
  for (const Pair& pair : pairs) total += pair.param.numel();
  const int64_t tile = tile_size(total);
  const auto tiles_of = [&](const Pair& pair) { return (pair.param.numel() + tile - 1) / tile; };
  int64_t tiles = 0;
  for (const Pair& pair : pairs) tiles += tiles_of(pair);
  const int64_t count = static_cast<int64_t>(pairs.size());

  Tensor layers = torch::stable::new_empty(
      out, {count * static_cast<int64_t>(sizeof(Layer))}, ScalarType::Byte);
  Tensor layer_of_tile = torch::stable::new_empty(out, {tiles}, ScalarType::Int);
  Tensor partials = torch::stable::new_empty(out, {tiles, kSums}, ScalarType::Double);
  const Table table{static_cast<Layer*>(layers.mutable_data_ptr()),
                    layer_of_tile.mutable_data_ptr<int32_t>(),
                    count,
                    tiles,
                    tile,
                    partials.mutable_data_ptr<double>()};

  int64_t first_tile = 0;
  for (int64_t first = 0; first < count; first += kChunk) {
    Chunk chunk;
    const int64_t n = std::min<int64_t>(kChunk, count - first);
    for (int64_t i = 0; i < n; ++i) {
      const Pair& pair = pairs[first + i];
      chunk.layers[i] = {pair.param.const_data_ptr(), pair.ref.const_data_ptr(),
                         pair.param.numel(),          first_tile,
                         pair.param.scalar_type(),    pair.ref.scalar_type()};
      first_tile += tiles_of(pair);
    }
    launch(write_table, n, kThreads, chunk, first, table);
  }
  launch(sum_tiles<kAll>, tiles, kThreads, table);
  launch(finish_layers<kAll>, (count + kFinishWarps - 1) / kFinishWarps, 32 * kFinishWarps, table,
         ref_sq_norms ? ref_sq_norms->const_data_ptr<double>() : nullptr,
         out.mutable_data_ptr<float>());
}

}  // namespace

Tensor statistics_cuda(std::vector<Tensor> params, std::vector<Tensor> refs,
                       std::optional<Tensor> ref_sq_norms) {
  const auto pairs = checked_pairs("layer_statistics", params, refs, ref_sq_norms);
  Tensor out = torch::stable::new_empty(
      params[0], {kRows, static_cast<int64_t>(pairs.size())}, ScalarType::Float);
  launch_all</*kAll=*/true>(pairs, ref_sq_norms, out);
  return out;
}

Tensor rotation_cuda(std::vector<Tensor> params, std::vector<Tensor> refs,
                     std::optional<Tensor> ref_sq_norms) {
  const auto pairs = checked_pairs("layer_rotation", params, refs, ref_sq_norms);
  Tensor out = torch::stable::new_empty(params[0], {static_cast<int64_t>(pairs.size())},
                                        ScalarType::Float);
  launch_all</*kAll=*/false>(pairs, ref_sq_norms, out);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("layer_statistics", TORCH_BOX(&statistics_cuda));
  m.impl("layer_rotation", TORCH_BOX(&rotation_cuda));
}

}  // namespace cpfast::layer_statistics
