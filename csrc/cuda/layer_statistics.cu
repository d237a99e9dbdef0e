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
static_assert(kSums == 6);  // what a warp sums by name, in end_layer
// Up to so many tiles a layer, on average, the block that ends a layer last goes over it again
// alone, where that is due: a second launch would cost every call what that costs few.
constexpr int64_t kTilesAlone = 8;
constexpr int kSlots = kThreads / kSums;  // of tiles whose sums are read side by side

// A plan's table and scratch.
struct Plan {
  Layer* layers;
  double* partials;        // [tile_count, kSums]
  int32_t* layer_of_tile;  // [tile_count]
  int32_t* tickets;  // [layer_count + 1]: tiles that have ended, and last, layers; 0 between calls
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

// What a call is given, and where its results go: to `out`, or where there is a cursor, to row
// (cursor mod rows) from there; or to `sums` alone.
struct Request {
  const double* ref_sq_norms = nullptr;
  float* out = nullptr;
  int64_t* cursor = nullptr;
  int64_t rows = 0;
  double* sums = nullptr;
  const double* ratios = nullptr;  // of the sums; 1 where there are none

  __device__ Given given() const { return {ref_sq_norms != nullptr, sums != nullptr}; }
  __device__ double ratio_of(const Layer& layer, int64_t index) const {
    return !sums ? layer.ratio : ratios ? rounded_ratio(ratios[index]) : 1.0;
  }
};

// One launch over all layers, or again over those that are due. After the last one nothing is.
struct Launch {
  bool again, last;
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

  __device__ void add(Real w, Real w0, Real ratio) {
    const Real d = w - ratio * w0;
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
    sums[kDD] += dd;
    sums[kD0] += d0;
    sums[kWW] += ww;
    if constexpr (kRefs) sums[kRR] += rr;
    if constexpr (kAll) {
      sums[kAbs] += abs;
      sums[kFlips] += flips;
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
__device__ void add_tile(Elements elements, typename Elements::Real ratio, int64_t numel,
                         double (&sums)[kSums]) {
  using Real = typename Elements::Real;
  constexpr int kVector = Elements::kVector, kUnroll = Elements::kUnroll;
  for (; numel > 0; numel -= kBlock, elements.advance(kBlock)) {
    const int n = static_cast<int>(min(numel, kBlock)), vectors = n / kVector;
    Accumulator<kAll, kRefs, Real> even, odd;
    const auto add = [&](const Real(&a)[kVector], const Real(&b)[kVector]) {
#pragma unroll
      for (int i = 0; i < kVector; i += 2) {
        even.add(a[i], b[i], ratio);
        odd.add(a[i + 1], b[i + 1], ratio);
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
    if (last < n) even.add(elements.w_at(last), elements.w0_at(last), ratio);
    even.add_to(sums);
    odd.add_to(sums);
  }
}

template <bool kAll, bool kRefs, typename W, typename R>
__device__ void add_tile_of(const Layer& layer, double ratio, int64_t offset, int64_t n,
                            double (&sums)[kSums]) {
  const auto s = static_cast<Compute<W>>(ratio);
  const W* w = static_cast<const W*>(layer.w) + offset;
  const R* w0 = static_cast<const R*>(layer.w0) + offset;
  if (is_aligned(w) && is_aligned(w0))
    add_tile<kAll, kRefs>(Arrays<true, W, R>{w, w0}, s, n, sums);
  else
    add_tile<kAll, kRefs>(Arrays<false, W, R>{w, w0}, s, n, sums);
}

template <bool kAll, bool kRefs, typename Real>
__device__ void add_mixed_tile(const Layer& layer, double ratio, int64_t offset, int64_t n,
                               double (&sums)[kSums]) {
  MixedArrays<Real> arrays{{static_cast<const char*>(layer.w), layer.dtype},
                           {static_cast<const char*>(layer.w0), layer.ref_dtype}};
  arrays.advance(offset);
  add_tile<kAll, kRefs>(arrays, static_cast<Real>(ratio), n, sums);
}

// By one warp, of which lane s holds the s-th sum of a layer: writes its results and returns false,
// or true where another pass is due first, which lane 0 then finds in `pass`.
template <bool kAll>
__device__ bool end_layer(const Plan& plan, const Request& request, int64_t index, Pass& pass,
                          double sum) {
  Sums sums;
  sums.dd = sum;  // that of lane 0, which alone writes
  sums.d0 = __shfl_sync(kAllLanes, sum, kD0);
  sums.ww = __shfl_sync(kAllLanes, sum, kWW);
  sums.rr = __shfl_sync(kAllLanes, sum, kRR);
  sums.abs = __shfl_sync(kAllLanes, sum, kAbs);
  sums.flips = __shfl_sync(kAllLanes, sum, kFlips);
  if (threadIdx.x != 0) return false;
  if (request.ref_sq_norms) sums.rr = request.ref_sq_norms[index];
  Layer& layer = plan.layers[index];
  layer.is_due = needs_another(layer, sums, request.given(), pass);
  layer.in_float64 = layer.is_due && pass.in_float64;
  if (!request.sums && !pass.in_float64) layer.ratio = static_cast<float>(pass.ratio);
  if (layer.is_due) return true;
  if (request.sums) {
    store_sums(sums, request.sums, index, plan.layer_count);
    return false;
  }
  float* out = request.out;
  if (request.cursor) out += row_of(*request.cursor, request.rows) * plan.layer_count;
  if constexpr (kAll)
    finish(sums, pass.ratio, layer.numel, out, index, plan.layer_count);
  else
    out[index] = cosine_distance(sums, pass.ratio);
  if (!request.cursor) return false;
  // Whoever writes the last layer moves the cursor on, which all others have read by then.
  __threadfence();
  int32_t* const ended = &plan.tickets[plan.layer_count];
  if (atomicAdd(ended, 1) != plan.layer_count - 1) return false;
  *ended = 0;
  *request.cursor = static_cast<int64_t>(static_cast<uint64_t>(*request.cursor) + 1);
  return false;
}

// By a whole block: each thread adds one of the sums of every kSlots-th tile, and the slots are
// added in order. The partial sums may have been written by other blocks of this kernel. Returns
// what end_layer does, in thread 0.
template <bool kAll>
__device__ bool sum_layer(const Plan& plan, const Request& request, int64_t index, Pass& pass,
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
  if (threadIdx.x >= 32) return false;
  double sum = 0;
  if (threadIdx.x < kSums) {
    const int used = static_cast<int>(min(tiles, int64_t{kSlots}));
    for (int slot = 0; slot < used; ++slot) sum += slots[slot * kSums + threadIdx.x];
  }
  return end_layer<kAll>(plan, request, index, pass, sum);
}

template <bool kAll, bool kRefs>
__device__ void add_tile_of_any(const Layer& layer, const Pass& pass, int64_t offset, int64_t n,
                                double (&sums)[kSums]) {
  using enum ScalarType;
  const auto both = [&](ScalarType a, ScalarType b) {
    return layer.dtype == a && layer.ref_dtype == b;
  };
  const double ratio = pass.ratio;
  if (pass.in_float64)
    add_mixed_tile<kAll, kRefs, double>(layer, ratio, offset, n, sums);
  else if (both(Float, Float))
    add_tile_of<kAll, kRefs, float, float>(layer, ratio, offset, n, sums);
  else if (both(Float, BFloat16))
    add_tile_of<kAll, kRefs, float, c10::BFloat16>(layer, ratio, offset, n, sums);
  else if (both(BFloat16, Float))
    add_tile_of<kAll, kRefs, c10::BFloat16, float>(layer, ratio, offset, n, sums);
  else if (both(BFloat16, BFloat16))
    add_tile_of<kAll, kRefs, c10::BFloat16, c10::BFloat16>(layer, ratio, offset, n, sums);
  else if (both(Half, Float))
    add_tile_of<kAll, kRefs, c10::Half, float>(layer, ratio, offset, n, sums);
  else if (both(Double, Double))
    add_tile_of<kAll, kRefs, double, double>(layer, ratio, offset, n, sums);
  else if (layer.is_float64())
    add_mixed_tile<kAll, kRefs, double>(layer, ratio, offset, n, sums);
  else
    add_mixed_tile<kAll, kRefs, float>(layer, ratio, offset, n, sums);
}

// A block takes neighbouring tiles: of a layer's table, fence and ticket it then waits for one
// each, where a tile alone would wait 1.4 us for them (by the instructions' latencies), longer than
// it reads. A sum depends on its tile alone, a layer on its tiles: the number of blocks decides
// nothing. Where no launch follows, the block that ends a layer makes the passes that are still
// due, alone.
template <bool kAll, bool kRefs>
__global__ void __launch_bounds__(kThreads, 2)
    sum_tiles(const __grid_constant__ Plan plan, const __grid_constant__ Request request,
              const Launch launch) {
  // Two, so that others may go on to the next tile while the first warp still adds this one's.
  __shared__ double warps[2][kThreads / 32][kSums];
  __shared__ double slots[kSlots * kSums];
  __shared__ bool is_last, is_due;
  __shared__ Pass due;
  const unsigned all = static_cast<unsigned>(plan.tile_count);
  const unsigned each = all / gridDim.x, longer = all % gridDim.x;
  int64_t tile = int64_t{each} * blockIdx.x + min(blockIdx.x, longer);
  const int64_t end = tile + each + (blockIdx.x < longer);
  int buffer = 0;
  for (int64_t index = plan.layer_of_tile[tile]; tile < end; ++index) {
    const Layer layer = plan.layers[index];
    const int64_t tiles = tiles_of(layer.numel, plan.tile_size);
    int64_t at = tile, to = min(end, layer.first_tile + tiles);
    tile = to;
    if (launch.again && !layer.is_due) continue;
    Pass pass{request.ratio_of(layer, index), launch.again && layer.in_float64};
    for (bool alone = to - at == tiles;; alone = true) {
      const int own = static_cast<int>(to - at);
      bool again = false;  // in thread 0
      for (; at < to; ++at) {
        const int64_t offset = (at - layer.first_tile) * plan.tile_size;
        double sums[kSums] = {};
        add_tile_of_any<kAll, kRefs>(layer, pass, offset, min(plan.tile_size, layer.numel - offset),
                                     sums);
        auto& of_warps = warps[buffer ^= 1];
#pragma unroll
        for (int s = 0; s < kSums; ++s) {
          const bool is_used = s < kRR || (s == kRR ? kRefs : kAll);
          const double sum = is_used ? warp_sum(sums[s]) : 0.0;
          if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32][s] = sum;
        }
        __syncthreads();
        if (threadIdx.x >= 32) continue;
        double sum = 0;
        if (threadIdx.x < kSums)
          for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warps[warp][threadIdx.x];
        if (!kFinishKernel && tiles == 1)
          again = end_layer<kAll>(plan, request, index, pass, sum);
        else if (threadIdx.x < kSums)
          plan.partials[at * kSums + threadIdx.x] = sum;
      }
      if (kFinishKernel) break;
      if (tiles > 1) {
        if (threadIdx.x < 32) {
          __syncwarp();
          if (threadIdx.x == 0) {
            // The sums before the ticket, and all other tickets before the sums of other tiles.
            __threadfence();
            is_last = alone || atomicAdd(&plan.tickets[index], own) == tiles - own;
            __threadfence();
            if (is_last && !alone) plan.tickets[index] = 0;
          }
        }
        __syncthreads();
        if (!is_last) break;
        again = sum_layer<kAll>(plan, request, index, pass, slots);
      }
      if (!launch.last) break;
      if (threadIdx.x == 0) {
        is_due = again;
        due = pass;
      }
      __syncthreads();
      if (!is_due) break;
      pass = due;
      at = layer.first_tile;
      to = at + tiles;
    }
  }
}

template <bool kAll>
__global__ void __launch_bounds__(kThreads)
    finish_layers(const __grid_constant__ Plan plan, const __grid_constant__ Request request,
                  const Launch launch) {
  __shared__ double slots[kSlots * kSums];
  const int64_t index = blockIdx.x;
  const Layer layer = plan.layers[index];
  if (launch.again && !layer.is_due) return;
  Pass pass{request.ratio_of(layer, index), launch.again && layer.in_float64};
  sum_layer<kAll>(plan, request, index, pass, slots);
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
void launch_sums(const Launcher& launch, const Plan& plan, const Request& request) {
  const int64_t blocks =
      std::min(plan.tile_count, launch.resident_blocks(sum_tiles<kAll, kRefs>, kThreads));
  const auto go_over = [&](Launch which) {
    launch(sum_tiles<kAll, kRefs>, blocks, kThreads, plan, request, which);
    if constexpr (kFinishKernel)
      launch(finish_layers<kAll>, plan.layer_count, kThreads, plan, request, which);
  };
  // A layer has up to three passes: the first, one in float64, and one with another ratio.
  if (kFinishKernel) {
    for (int i = 0; i < 3; ++i) go_over({.again = i > 0, .last = false});
  } else if (plan.tile_count <= kTilesAlone * plan.layer_count) {
    go_over({.again = false, .last = true});
  } else {
    go_over({.again = false, .last = false});
    go_over({.again = true, .last = true});
  }
}

template <bool kAll>
void run(const Launcher& launch, const Plan& plan, const Request& request) {
  if (request.ref_sq_norms)
    launch_sums<kAll, false>(launch, plan, request);
  else
    launch_sums<kAll, true>(launch, plan, request);
}

const double* doubles_of(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const double*>(tensor->const_data_ptr()) : nullptr;
}

template <bool kAll>
Tensor new_result(const Tensor& like, int64_t layers) {
  if constexpr (kAll)
    return torch::stable::new_empty(like, {kRows, layers}, ScalarType::Float);
  else
    return torch::stable::new_empty(like, {layers}, ScalarType::Float);
}

template <bool kAll>
Tensor run_table(const char* op, const std::vector<Tensor>& params, const std::vector<Tensor>& refs,
                 const std::optional<Tensor>& ref_sq_norms) {
  const Table table = checked_layers(op, params, refs);
  const int64_t layers = static_cast<int64_t>(table.layers.size());
  check_norms(op, ref_sq_norms, layers, params[0]);
  Tensor out = new_result<kAll>(params[0], layers);
  Tensor bytes = torch::stable::new_empty(out, {plan_bytes(layers, table.tiles)}, ScalarType::Byte);
  const Launcher launch(out);
  run<kAll>(launch, write_plan(launch, table, bytes),
            {.ref_sq_norms = doubles_of(ref_sq_norms),
             .out = static_cast<float*>(out.mutable_data_ptr())});
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
            {.ref_sq_norms = doubles_of(ref_sq_norms),
             .out = static_cast<float*>(out.mutable_data_ptr())});
  return out;
}

Tensor run_sums(const Launcher& launch, const Plan& plan, const std::optional<Tensor>& ratio,
                const Tensor& like) {
  Tensor sums = torch::stable::new_empty(like, {kSums, plan.layer_count}, ScalarType::Double);
  run</*kAll=*/true>(
      launch, plan,
      {.sums = static_cast<double*>(sums.mutable_data_ptr()), .ratios = doubles_of(ratio)});
  return sums;
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

Tensor sums_cuda(std::vector<Tensor> params, std::vector<Tensor> refs,
                 std::optional<Tensor> ratio) {
  const Table table = checked_layers("layer_sums", params, refs);
  const int64_t layers = static_cast<int64_t>(table.layers.size());
  check_ratio("layer_sums", ratio, layers, params[0]);
  Tensor bytes =
      torch::stable::new_empty(params[0], {plan_bytes(layers, table.tiles)}, ScalarType::Byte);
  const Launcher launch(bytes);
  return run_sums(launch, write_plan(launch, table, bytes), ratio, bytes);
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

Tensor planned_sums_cuda(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                         std::optional<Tensor> ratio) {
  const char* op = "planned_layer_sums";
  const Plan planned = checked_plan(op, plan, layers, tiles, tile, std::nullopt);
  check_ratio(op, ratio, layers, plan);
  return run_sums(Launcher(plan), planned, ratio, plan);
}

void record_rotation_cuda(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                          std::optional<Tensor> ref_sq_norms, Tensor history, Tensor cursor) {
  const char* op = "record_layer_rotation";
  const Plan planned = checked_plan(op, plan, layers, tiles, tile, ref_sq_norms);
  check_history(op, history, cursor, layers, plan);
  run</*kAll=*/false>(Launcher(plan), planned,
                      {.ref_sq_norms = doubles_of(ref_sq_norms),
                       .out = static_cast<float*>(history.mutable_data_ptr()),
                       .cursor = static_cast<int64_t*>(cursor.mutable_data_ptr()),
                       .rows = history.size(0)});
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("layer_statistics", TORCH_BOX(&statistics_cuda));
  m.impl("layer_rotation", TORCH_BOX(&rotation_cuda));
  m.impl("layer_sums", TORCH_BOX(&sums_cuda));
  m.impl("plan_layers", TORCH_BOX(&plan_cuda));
  m.impl("planned_layer_statistics", TORCH_BOX(&planned_statistics_cuda));
  m.impl("planned_layer_rotation", TORCH_BOX(&planned_rotation_cuda));
  m.impl("planned_layer_sums", TORCH_BOX(&planned_sums_cuda));
  m.impl("record_layer_rotation", TORCH_BOX(&record_rotation_cuda));
}

}  // namespace cpfast::layer_statistics
