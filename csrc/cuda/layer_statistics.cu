#include "../layer_statistics.h"

#include "device.h"
#include "launch.h"

#include <algorithm>

namespace cpfast::layer_statistics {
namespace {

// With it, a kernel of its own sums the tiles of each layer; without, whichever block ends last. To
// measure both: NVCC_APPEND_FLAGS=-DCPFAST_LAYER_FINISH_KERNEL builds it.
#ifdef CPFAST_LAYER_FINISH_KERNEL
constexpr bool kFinishKernel = true;
#else
constexpr bool kFinishKernel = false;
#endif

constexpr int kThreads = 256;
constexpr int kSums = sizeof(Sums) / sizeof(double);
constexpr int kSlots = kThreads / kSums;  // of tiles whose sums are read side by side

// A plan's table and scratch.
struct Plan {
  Layer* layers;
  double* partials;        // [tile_count, kSums]
  int32_t* layer_of_tile;  // [tile_count]
  int32_t* tickets;        // [layer_count + 1]: tiles that have ended, and last, layers; 0 between calls
  int64_t layer_count, tile_count, tile_size;
};

int64_t plan_bytes(int64_t layers, int64_t tiles) {
  return layers * static_cast<int64_t>(sizeof(Layer)) +
      tiles * static_cast<int64_t>(kSums * sizeof(double) + sizeof(int32_t)) +
      (layers + 1) * static_cast<int64_t>(sizeof(int32_t));
}

Plan plan_at(void* at, int64_t layers, int64_t tiles, int64_t tile_size) {
  Plan plan{};
  plan.layers = static_cast<Layer*>(at);
  plan.partials = reinterpret_cast<double*>(plan.layers + layers);
  plan.layer_of_tile = reinterpret_cast<int32_t*>(plan.partials + tiles * kSums);
  plan.tickets = plan.layer_of_tile + tiles;
  plan.layer_count = layers;
  plan.tile_count = tiles;
  plan.tile_size = tile_size;
  return plan;
}

// Where the results go: to `out`, or where there is a cursor, to row (cursor mod rows) from there.
struct Result {
  const double* ref_sq_norms;
  float* out;
  int64_t* cursor;
  int64_t rows;
};

// Layers that travel as an argument of a kernel: no copy from host memory, which would have to
// stay in place until the stream gets there. 4 KB of arguments is what every driver takes.
constexpr int kChunk = 80;
struct Chunk {
  Layer layers[kChunk];
};
static_assert(sizeof(Chunk) + sizeof(Plan) + sizeof(int64_t) <= 4096);

__global__ void __launch_bounds__(kThreads)
    write_table(const __grid_constant__ Chunk chunk, int64_t first_layer,
                const __grid_constant__ Plan plan) {
  const int64_t layer = first_layer + blockIdx.x;
  const int64_t first_tile = chunk.layers[blockIdx.x].first_tile;
  const int64_t tiles = tiles_of(chunk.layers[blockIdx.x].numel, plan.tile_size);
  if (threadIdx.x == 0) {
    plan.layers[layer] = chunk.layers[blockIdx.x];
    plan.tickets[layer] = 0;
    plan.tickets[plan.layer_count] = 0;
  }
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads)
    plan.layer_of_tile[first_tile + t] = static_cast<int32_t>(layer);
}

template <bool kAll, bool kRefs, typename Real>
struct Accumulator {
  Real dd = 0, d0 = 0, ww = 0, rr = 0, abs = 0;
  int flips = 0;

  __device__ void add(Real w, Real w0) {
    const Real d = w - w0;
    dd += d * d;
    d0 += d * w0;
    ww += w * w;
    if constexpr (kRefs) rr += w0 * w0;
    if constexpr (kAll) {
      abs += fabs(w);
      flips += (w < 0 && w0 > 0) || (w > 0 && w0 < 0);
    }
  }

  __device__ void add_to(double (&sums)[kSums]) const {
    sums[0] += dd;
    sums[1] += d0;
    sums[2] += ww;
    if constexpr (kRefs) sums[3] += rr;
    if constexpr (kAll) {
      sums[4] += abs;
      sums[5] += flips;
    }
  }
};

// What a block adds before its float32 sums go into float64: one thread adds, in two accumulators
// or in one, at most kMaxAdditions of these elements.
constexpr int64_t kBlock = kMaxAdditions * kThreads;
static_assert(kLargeTile == kBlock);

// Two arrays whose elements are loaded kVector at a time, in accesses of 16 bytes.
template <bool kAligned_, typename W, typename R>
struct Arrays {
  using Real = Compute<W>;
  static_assert(std::is_same_v<Real, Compute<R>>);
  static constexpr int kVector = std::max(kWidth<W>, kWidth<R>);
  // 16 elements of each array in flight a thread, as a tile of kSmallTile has; half of that where
  // registers would not suffice.
  static constexpr int kUnroll = (std::is_same_v<Real, double> || !kAligned_ ? 8 : 16) / kVector;

  const W* w;
  const R* w0;

  // A vector lies in its tile as a whole: aligned, nothing beside the tile is read.
  __device__ void load_vector(int64_t i, Real (&a)[kVector], Real (&b)[kVector]) const {
    load<kAligned_>(w + i, a);
    load<kAligned_>(w0 + i, b);
  }
  __device__ Real w_at(int64_t i) const { return static_cast<Real>(w[i]); }
  __device__ Real w0_at(int64_t i) const { return static_cast<Real>(w0[i]); }
  __device__ void advance(int64_t n) { w += n, w0 += n; }
};

// One array of a dtype known at run time alone. All threads of a block take the same turn.
template <typename Real>
struct AnyArray {
  const char* at;
  ScalarType dtype;

  template <typename Run>
  __device__ void with(const Run& run) const {
    switch (dtype) {
      case ScalarType::Double: return run(reinterpret_cast<const double*>(at));
      case ScalarType::Half: return run(reinterpret_cast<const c10::Half*>(at));
      case ScalarType::BFloat16: return run(reinterpret_cast<const c10::BFloat16*>(at));
      default: return run(reinterpret_cast<const float*>(at));
    }
  }
  template <int kVector>
  __device__ void load_vector(int64_t i, Real (&to)[kVector]) const {
    with([&](const auto* from) {
      if (is_aligned(from + i))
        load<true>(from + i, to);
      else
        load<false>(from + i, to);
    });
  }
  __device__ Real operator[](int64_t i) const {
    Real value = 0;
    with([&](const auto* from) { value = static_cast<Real>(from[i]); });
    return value;
  }
  __device__ void advance(int64_t n) {
    with([&](const auto* from) { at = reinterpret_cast<const char*>(from + n); });
  }
};

template <typename Real_>
struct MixedArrays {
  using Real = Real_;
  static constexpr int kVector = 8, kUnroll = 1;

  AnyArray<Real> w, w0;

  __device__ void load_vector(int64_t i, Real (&a)[kVector], Real (&b)[kVector]) const {
    w.load_vector(i, a);
    w0.load_vector(i, b);
  }
  __device__ Real w_at(int64_t i) const { return w[i]; }
  __device__ Real w0_at(int64_t i) const { return w0[i]; }
  __device__ void advance(int64_t n) { w.advance(n), w0.advance(n); }
};

// Which thread adds which elements depends on their indices alone, not on their addresses.
template <bool kAll, bool kRefs, typename Elements>
__device__ void add_tile(Elements elements, int64_t numel, double (&sums)[kSums]) {
  using Real = typename Elements::Real;
  constexpr int kVector = Elements::kVector, kUnroll = Elements::kUnroll;
  for (; numel > 0; numel -= kBlock, elements.advance(kBlock)) {
    const int n = static_cast<int>(min(numel, kBlock)), vectors = n / kVector;
    Accumulator<kAll, kRefs, Real> even, odd;
    const auto add = [&](const Real(&a)[kVector], const Real(&b)[kVector]) {
#pragma unroll
      for (int i = 0; i < kVector; i += 2) {
        even.add(a[i], b[i]);
        odd.add(a[i + 1], b[i + 1]);
      }
    };
    int v = threadIdx.x;
    for (; v + (kUnroll - 1) * kThreads < vectors; v += kUnroll * kThreads) {
      Real a[kUnroll][kVector], b[kUnroll][kVector];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        elements.load_vector((v + u * kThreads) * kVector, a[u], b[u]);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) add(a[u], b[u]);
    }
    for (; v < vectors; v += kThreads) {
      Real a[kVector], b[kVector];
      elements.load_vector(v * kVector, a, b);
      add(a, b);
    }
    const int last = vectors * kVector + threadIdx.x;
    if (last < n) even.add(elements.w_at(last), elements.w0_at(last));
    even.add_to(sums);
    odd.add_to(sums);
  }
}

template <bool kAll, bool kRefs, typename W, typename R>
__device__ void add_tile_of(const Layer& layer, int64_t offset, int64_t n, double (&sums)[kSums]) {
  const W* w = static_cast<const W*>(layer.w) + offset;
  const R* w0 = static_cast<const R*>(layer.w0) + offset;
  if (is_aligned(w) && is_aligned(w0))
    add_tile<kAll, kRefs>(Arrays<true, W, R>{w, w0}, n, sums);
  else
    add_tile<kAll, kRefs>(Arrays<false, W, R>{w, w0}, n, sums);
}

template <bool kAll, bool kRefs, typename Real>
__device__ void add_mixed_tile(const Layer& layer, int64_t offset, int64_t n,
                               double (&sums)[kSums]) {
  MixedArrays<Real> arrays{{static_cast<const char*>(layer.w), layer.dtype},
                           {static_cast<const char*>(layer.w0), layer.ref_dtype}};
  arrays.advance(offset);
  add_tile<kAll, kRefs>(arrays, n, sums);
}

// By one warp, of which lane s holds the s-th sum of a layer.
template <bool kAll>
__device__ void write_layer(const Plan& plan, const Result& result, int64_t index, double sum) {
  Sums sums;
  sums.dd = sum;  // that of lane 0, which alone writes
  sums.d0 = __shfl_sync(kAllLanes, sum, 1);
  sums.ww = __shfl_sync(kAllLanes, sum, 2);
  sums.rr = __shfl_sync(kAllLanes, sum, 3);
  sums.abs = __shfl_sync(kAllLanes, sum, 4);
  sums.flips = __shfl_sync(kAllLanes, sum, 5);
  if (threadIdx.x != 0) return;
  if (result.ref_sq_norms) sums.rr = result.ref_sq_norms[index];
  float* out = result.out;
  if (result.cursor) out += *result.cursor % result.rows * plan.layer_count;
  if constexpr (kAll)
    finish(sums, plan.layers[index].numel, out, index, plan.layer_count);
  else
    out[index] = cosine_distance(sums);
  if (!result.cursor) return;
  // Whoever writes the last layer moves the cursor on, which all others have read by then.
  __threadfence();
  int32_t* const ended = &plan.tickets[plan.layer_count];
  if (atomicAdd(ended, 1) != plan.layer_count - 1) return;
  *ended = 0;
  *result.cursor += 1;
}

// By a whole block: each thread adds one of the sums of every kSlots-th tile, and the slots are
// added in order. The partial sums may have been written by other blocks of this kernel.
template <bool kAll>
__device__ void sum_layer(const Plan& plan, const Result& result, int64_t index,
                          double (&slots)[kSlots * kSums]) {
  const Layer& layer = plan.layers[index];
  const int64_t tiles = tiles_of(layer.numel, plan.tile_size);
  const double* partials = plan.partials + layer.first_tile * kSums;
  if (threadIdx.x < kSlots * kSums) {
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < tiles * kSums; i += kSlots * kSums)
      sum += __ldcg(partials + i);
    slots[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  double sum = 0;
  if (threadIdx.x < kSums) {
    const int used = static_cast<int>(min(tiles, int64_t{kSlots}));
    for (int slot = 0; slot < used; ++slot) sum += slots[slot * kSums + threadIdx.x];
  }
  write_layer<kAll>(plan, result, index, sum);
}

template <bool kAll, bool kRefs>
__device__ void add_tile_of_any(const Layer& layer, int64_t offset, int64_t n,
                                double (&sums)[kSums]) {
  using enum ScalarType;
  const auto both = [&](ScalarType a, ScalarType b) {
    return layer.dtype == a && layer.ref_dtype == b;
  };
  if (both(Float, Float)) add_tile_of<kAll, kRefs, float, float>(layer, offset, n, sums);
  else if (both(Float, BFloat16))
    add_tile_of<kAll, kRefs, float, c10::BFloat16>(layer, offset, n, sums);
  else if (both(BFloat16, Float))
    add_tile_of<kAll, kRefs, c10::BFloat16, float>(layer, offset, n, sums);
  else if (both(BFloat16, BFloat16))
    add_tile_of<kAll, kRefs, c10::BFloat16, c10::BFloat16>(layer, offset, n, sums);
  else if (both(Half, Float)) add_tile_of<kAll, kRefs, c10::Half, float>(layer, offset, n, sums);
  else if (both(Double, Double)) add_tile_of<kAll, kRefs, double, double>(layer, offset, n, sums);
  else if (layer.dtype == Double || layer.ref_dtype == Double)
    add_mixed_tile<kAll, kRefs, double>(layer, offset, n, sums);
  else
    add_mixed_tile<kAll, kRefs, float>(layer, offset, n, sums);
}

// A block takes neighbouring tiles: of a layer's table, fence and ticket it then waits for one each,
// where a tile alone would wait 1.4 us for them (by the instructions' latencies), longer than it
// reads. A sum depends on its tile alone, a layer on its tiles: the number of blocks decides nothing.
template <bool kAll, bool kRefs>
__global__ void __launch_bounds__(kThreads, 2)
    sum_tiles(const __grid_constant__ Plan plan, const __grid_constant__ Result result) {
  // Two, so that others may go on to the next tile while the first warp still adds this one's.
  __shared__ double warps[2][kThreads / 32][kSums];
  __shared__ double slots[kSlots * kSums];
  __shared__ bool is_last;
  const unsigned all = static_cast<unsigned>(plan.tile_count);
  const unsigned each = all / gridDim.x, longer = all % gridDim.x;
  int64_t tile = int64_t{each} * blockIdx.x + min(blockIdx.x, longer);
  const int64_t end = tile + each + (blockIdx.x < longer);
  for (int64_t index = plan.layer_of_tile[tile]; tile < end; ++index) {
    const Layer layer = plan.layers[index];
    const int64_t tiles = tiles_of(layer.numel, plan.tile_size);
    const int64_t first = tile, own_end = min(end, layer.first_tile + tiles);
    for (; tile < own_end; ++tile) {
      const int64_t offset = (tile - layer.first_tile) * plan.tile_size;
      double sums[kSums] = {};
      add_tile_of_any<kAll, kRefs>(layer, offset, min(plan.tile_size, layer.numel - offset), sums);
      auto& of_warps = warps[tile % 2];
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        const bool is_used = s < 3 || (s == 3 ? kRefs : kAll);
        const double sum = is_used ? warp_sum(sums[s]) : 0.0;
        if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32][s] = sum;
      }
      __syncthreads();
      if (threadIdx.x >= 32) continue;
      double sum = 0;
      if (threadIdx.x < kSums)
        for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warps[warp][threadIdx.x];
      if (!kFinishKernel && tiles == 1)
        write_layer<kAll>(plan, result, index, sum);
      else if (threadIdx.x < kSums)
        plan.partials[tile * kSums + threadIdx.x] = sum;
    }
    if (kFinishKernel || tiles == 1) continue;
    if (threadIdx.x < 32) {
      __syncwarp();
      if (threadIdx.x == 0) {
        // The sums before the ticket, and all other tickets before the sums of other tiles.
        const int own = static_cast<int>(tile - first);
        __threadfence();
        is_last = atomicAdd(&plan.tickets[index], own) == tiles - own;
        __threadfence();
        if (is_last) plan.tickets[index] = 0;
      }
    }
    __syncthreads();
    if (is_last) sum_layer<kAll>(plan, result, index, slots);
  }
}

template <bool kAll>
__global__ void __launch_bounds__(kThreads)
    finish_layers(const __grid_constant__ Plan plan, const __grid_constant__ Result result) {
  __shared__ double slots[kSlots * kSums];
  sum_layer<kAll>(plan, result, blockIdx.x, slots);
}

Plan write_plan(const Launcher& launch, const Table& table, Tensor& bytes) {
  const int64_t layers = static_cast<int64_t>(table.layers.size());
  const Plan plan = plan_at(bytes.mutable_data_ptr(), layers, table.tiles, table.tile);
  for (int64_t first = 0; first < layers; first += kChunk) {
    Chunk chunk{};
    const int64_t n = std::min<int64_t>(kChunk, layers - first);
    std::copy_n(table.layers.begin() + first, n, chunk.layers);
    launch(write_table, n, kThreads, chunk, first, plan);
  }
  return plan;
}

template <bool kAll, bool kRefs>
void launch_sums(const Launcher& launch, const Plan& plan, const Result& result) {
  const int64_t blocks = launch.resident_blocks(sum_tiles<kAll, kRefs>, kThreads);
  launch(sum_tiles<kAll, kRefs>, std::min(plan.tile_count, blocks), kThreads, plan, result);
  if constexpr (kFinishKernel) launch(finish_layers<kAll>, plan.layer_count, kThreads, plan, result);
}

template <bool kAll>
void run(const Launcher& launch, const Plan& plan, const Result& result) {
  if (result.ref_sq_norms)
    launch_sums<kAll, false>(launch, plan, result);
  else
    launch_sums<kAll, true>(launch, plan, result);
}

const double* norms_of(const std::optional<Tensor>& ref_sq_norms) {
  return ref_sq_norms ? static_cast<const double*>(ref_sq_norms->const_data_ptr()) : nullptr;
}

template <bool kAll>
Tensor new_result(const Tensor& like, int64_t layers) {
  if constexpr (kAll)
    return torch::stable::new_empty(like, {kRows, layers}, ScalarType::Float);
  else
    return torch::stable::new_empty(like, {layers}, ScalarType::Float);
}

template <bool kAll>
Tensor run_table(const char* op, const std::vector<Tensor>& params,
                 const std::vector<Tensor>& refs, const std::optional<Tensor>& ref_sq_norms) {
  const Table table = checked_layers(op, params, refs);
  const int64_t layers = static_cast<int64_t>(table.layers.size());
  check_norms(op, ref_sq_norms, layers, params[0]);
  Tensor out = new_result<kAll>(params[0], layers);
  Tensor bytes =
      torch::stable::new_empty(out, {plan_bytes(layers, table.tiles)}, ScalarType::Byte);
  const Launcher launch(out);
  run<kAll>(launch, write_plan(launch, table, bytes),
            {norms_of(ref_sq_norms), static_cast<float*>(out.mutable_data_ptr()), nullptr, 0});
  return out;
}

Plan checked_plan(const char* op, const Tensor& bytes, int64_t layers, int64_t tiles, int64_t tile,
                  const std::optional<Tensor>& ref_sq_norms) {
  check_plan(op, bytes, plan_bytes(layers, tiles));
  check_norms(op, ref_sq_norms, layers, bytes);
  return plan_at(bytes.mutable_data_ptr(), layers, tiles, tile);
}

template <bool kAll>
Tensor run_plan(const char* op, const Tensor& bytes, int64_t layers, int64_t tiles, int64_t tile,
                const std::optional<Tensor>& ref_sq_norms) {
  const Plan plan = checked_plan(op, bytes, layers, tiles, tile, ref_sq_norms);
  Tensor out = new_result<kAll>(bytes, layers);
  run<kAll>(Launcher(out), plan,
            {norms_of(ref_sq_norms), static_cast<float*>(out.mutable_data_ptr()), nullptr, 0});
  return out;
}

}  // namespace

Tensor statistics_cuda(std::vector<Tensor> params, std::vector<Tensor> refs,
                       std::optional<Tensor> ref_sq_norms) {
  return run_table</*kAll=*/true>("layer_statistics", params, refs, ref_sq_norms);
}

Tensor rotation_cuda(std::vector<Tensor> params, std::vector<Tensor> refs,
                     std::optional<Tensor> ref_sq_norms) {
  return run_table</*kAll=*/false>("layer_rotation", params, refs, ref_sq_norms);
}

std::tuple<Tensor, int64_t, int64_t, int64_t> plan_cuda(std::vector<Tensor> params,
                                                        std::vector<Tensor> refs) {
  const Table table = checked_layers("plan_layers", params, refs);
  check_walks("plan_layers", table);
  const int64_t layers = static_cast<int64_t>(table.layers.size());
  Tensor bytes =
      torch::stable::new_empty(params[0], {plan_bytes(layers, table.tiles)}, ScalarType::Byte);
  write_plan(Launcher(bytes), table, bytes);
  return {bytes, layers, table.tiles, table.tile};
}

Tensor planned_statistics_cuda(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                               std::optional<Tensor> ref_sq_norms) {
  return run_plan</*kAll=*/true>("planned_layer_statistics", plan, layers, tiles, tile,
                                 ref_sq_norms);
}

Tensor planned_rotation_cuda(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                             std::optional<Tensor> ref_sq_norms) {
  return run_plan</*kAll=*/false>("planned_layer_rotation", plan, layers, tiles, tile,
                                  ref_sq_norms);
}

void record_rotation_cuda(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                          std::optional<Tensor> ref_sq_norms, Tensor history, Tensor cursor) {
  const char* op = "record_layer_rotation";
  const Plan planned = checked_plan(op, plan, layers, tiles, tile, ref_sq_norms);
  check_history(op, history, cursor, layers, plan);
  run</*kAll=*/false>(Launcher(plan), planned,
                      {norms_of(ref_sq_norms), static_cast<float*>(history.mutable_data_ptr()),
                       static_cast<int64_t*>(cursor.mutable_data_ptr()), history.size(0)});
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("layer_statistics", TORCH_BOX(&statistics_cuda));
  m.impl("layer_rotation", TORCH_BOX(&rotation_cuda));
  m.impl("plan_layers", TORCH_BOX(&plan_cuda));
  m.impl("planned_layer_statistics", TORCH_BOX(&planned_statistics_cuda));
  m.impl("planned_layer_rotation", TORCH_BOX(&planned_rotation_cuda));
  m.impl("record_layer_rotation", TORCH_BOX(&record_rotation_cuda));
}

}  // namespace cpfast::layer_statistics
