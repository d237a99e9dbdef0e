#include "../layer_statistics.h"

#include "isa.h"

#include <atomic>
#include <limits>
#include <unordered_set>

namespace cpfast::layer_statistics {
namespace {

template <typename To>
void widen_to(ScalarType dtype, const void* from, int64_t offset, int64_t n, To* to) {
  for_floating(dtype, [&]<typename From>(From) {
    const From* at = static_cast<const From*>(from) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(at[i]);
  });
}

// The layers of a table or of a plan.
struct Layers {
  Layer* at;
  int64_t count, tiles, tile;

  int64_t elements() const { return at[count - 1].first_element + at[count - 1].numel; }
};

// Of one layer.
struct Turn {
  Pass pass;
  bool is_due;
};

#define CPFAST_KERNEL "layer_statistics_kernel.h"
#include "foreach_isa.h"

// A thread is worth waking for so many elements (about 5 us of work).
constexpr int64_t kGrain = 65536;

// What a call is given, and whether it needs all sums or those of the rotation alone.
struct Request {
  const double *norms = nullptr, *ratios = nullptr;
  bool all = true;

  Given given() const { return {norms != nullptr, ratios != nullptr}; }
};

// Calls of one plan may run side by side: they leave each other guesses, which change no result.
std::atomic_ref<float> guess(Layer& layer) { return std::atomic_ref<float>(layer.ratio); }

// finish(l, sums, ratio) for all layers.
template <typename Finish>
void for_sums(const Layers& layers, const Request& request, const Finish& finish) {
  std::vector<Turn> turns(layers.count);
  for (int64_t l = 0; l < layers.count; ++l) {
    const double guessed = guess(layers.at[l]).load(std::memory_order_relaxed);
    turns[l] = {{request.ratios ? rounded_ratio(request.ratios[l]) : guessed, false}, true};
  }
  std::vector<Sums> partials(layers.tiles);
  for (bool again = true; again;) {
    // Shares of equal elements, not of equal tiles: those at the ends of layers are short.
    torch::stable::parallel_for(0, layers.elements(), kGrain, [&](int64_t begin, int64_t end) {
      CPFAST_DISPATCH(sum_tiles)
      (layers, turns.data(), begin, end, request.all, !request.norms, partials.data());
    });
    again = false;
    for (int64_t l = 0; l < layers.count; ++l) {
      if (!turns[l].is_due) continue;
      Layer& layer = layers.at[l];
      Sums sums;
      for (int64_t t = 0; t < tiles_of(layer.numel, layers.tile); ++t)
        sums.add(partials[layer.first_tile + t]);
      if (request.norms) sums.rr = request.norms[l];
      Pass& pass = turns[l].pass;
      turns[l].is_due = needs_another(layer, sums, request.given(), pass);
      again |= turns[l].is_due;
      if (turns[l].is_due) continue;
      if (!request.ratios && !pass.in_float64)
        guess(layer).store(static_cast<float>(pass.ratio), std::memory_order_relaxed);
      finish(l, sums, pass.ratio);
    }
  }
}

const double* doubles_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<double>() : nullptr;
}

Tensor statistics_of(const Layers& layers, const std::optional<Tensor>& ref_sq_norms,
                     const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, {kRows, layers.count}, ScalarType::Float);
  float* const to = static_cast<float*>(out.mutable_data_ptr());
  for_sums(layers, {.norms = doubles_of(ref_sq_norms)},
           [&](int64_t l, const Sums& sums, double ratio) {
             finish(sums, ratio, layers.at[l].numel, to, l, layers.count);
           });
  return out;
}

void write_rotation(const Layers& layers, const std::optional<Tensor>& ref_sq_norms, float* to) {
  for_sums(
      layers, {.norms = doubles_of(ref_sq_norms), .all = false},
      [&](int64_t l, const Sums& sums, double ratio) { to[l] = cosine_distance(sums, ratio); });
}

Tensor rotation_of(const Layers& layers, const std::optional<Tensor>& ref_sq_norms,
                   const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, {layers.count}, ScalarType::Float);
  write_rotation(layers, ref_sq_norms, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

Tensor sums_of(const Layers& layers, const std::optional<Tensor>& ratio, const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, {kSums, layers.count}, ScalarType::Double);
  double* const to = static_cast<double*>(out.mutable_data_ptr());
  const std::vector<double> ones(ratio ? 0 : layers.count, 1.0);
  for_sums(layers, {.ratios = ratio ? doubles_of(ratio) : ones.data()},
           [&](int64_t l, const Sums& sums, double) { store_sums(sums, to, l, layers.count); });
  return out;
}

Layers layers_of(Table& table) {
  return {table.layers.data(), static_cast<int64_t>(table.layers.size()), table.tiles, table.tile};
}

// What lies behind a plan: the layers, after them an entry that leads back here, and the tensors,
// so that they live as long as it does. A storage that is resized gives its memory away all the
// same: every call asks for the addresses, of one tensor a storage, as a snapshot often lies in
// one. That costs a tenth of asking in Python.
struct __attribute__((visibility("hidden"))) Planned {
  struct Place {
    bool is_ref;
    int64_t layer;
    const void* at;
  };

  std::vector<Layer> layers;
  std::vector<Tensor> params, refs;
  std::vector<Place> places = {};

  const Tensor& tensor(const Place& place) const {
    return (place.is_ref ? refs : params)[place.layer];
  }
};

// Where a tensor's storage begins.
const void* storage_of(const Tensor& tensor, ScalarType dtype, const void* at) {
  int64_t offset = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor.get(), &offset));
  const char* begin = static_cast<const char*>(at);
  for_floating(dtype, [&]<typename T>(T) { begin -= offset * static_cast<int64_t>(sizeof(T)); });
  return begin;
}

std::vector<Planned::Place> places_of(const Planned& planned) {
  std::vector<Planned::Place> places;
  std::unordered_set<const void*> known;
  for (const bool is_ref : {false, true})
    for (size_t l = 0; l < planned.params.size(); ++l) {
      const Layer& layer = planned.layers[l];
      if (layer.numel == 0) continue;
      const Planned::Place place{is_ref, static_cast<int64_t>(l), is_ref ? layer.w0 : layer.w};
      const ScalarType dtype = is_ref ? layer.ref_dtype : layer.dtype;
      if (known.insert(storage_of(planned.tensor(place), dtype, place.at)).second)
        places.push_back(place);
    }
  return places;
}

void check_places(const char* op, const Layers& layers) {
  const Planned& planned = *static_cast<const Planned*>(layers.at[layers.count].w);
  for (const Planned::Place& place : planned.places) {
    const void* now = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(planned.tensor(place).get(), &now));
    check(now == place.at, op, place.is_ref ? "refs[" : "params[", place.layer,
          "]: its storage was resized, and is no longer where it was; make a new plan");
  }
}

Layers layers_of(const char* op, Tensor& plan, int64_t layers, int64_t tiles, int64_t tile,
                 const std::optional<Tensor>& ref_sq_norms) {
  check_plan(op, plan, (layers + 1) * static_cast<int64_t>(sizeof(Layer)));
  check_norms(op, ref_sq_norms, layers, plan);
  const Layers planned{static_cast<Layer*>(plan.mutable_data_ptr()), layers, tiles, tile};
  check_places(op, planned);
  return planned;
}

}  // namespace

Tensor statistics_cpu(std::vector<Tensor> params, std::vector<Tensor> refs,
                      std::optional<Tensor> ref_sq_norms) {
  Table table = checked_layers("layer_statistics", params, refs);
  check_norms("layer_statistics", ref_sq_norms, layers_of(table).count, params[0]);
  return statistics_of(layers_of(table), ref_sq_norms, params[0]);
}

Tensor rotation_cpu(std::vector<Tensor> params, std::vector<Tensor> refs,
                    std::optional<Tensor> ref_sq_norms) {
  Table table = checked_layers("layer_rotation", params, refs);
  check_norms("layer_rotation", ref_sq_norms, layers_of(table).count, params[0]);
  return rotation_of(layers_of(table), ref_sq_norms, params[0]);
}

Tensor sums_cpu(std::vector<Tensor> params, std::vector<Tensor> refs, std::optional<Tensor> ratio) {
  Table table = checked_layers("layer_sums", params, refs);
  check_ratio("layer_sums", ratio, layers_of(table).count, params[0]);
  return sums_of(layers_of(table), ratio, params[0]);
}

std::tuple<Tensor, int64_t, int64_t, int64_t> plan_cpu(std::vector<Tensor> params,
                                                       std::vector<Tensor> refs) {
  Table table = checked_layers("plan_layers", params, refs);
  check_walks("plan_layers", table);
  const int64_t layers = layers_of(table).count;
  auto* const planned = new Planned{std::move(table.layers), std::move(params), std::move(refs)};
  planned->places = places_of(*planned);
  planned->layers.push_back(Layer{.w = planned});
  const int64_t bytes = (layers + 1) * static_cast<int64_t>(sizeof(Layer));
  const Tensor plan =
      torch::stable::from_blob(planned->layers.data(), {bytes}, {1},
                               torch::stable::Device(torch::headeronly::DeviceType::CPU),
                               ScalarType::Byte, [planned](void*) { delete planned; });
  return {plan, layers, table.tiles, table.tile};
}

Tensor planned_statistics_cpu(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                              std::optional<Tensor> ref_sq_norms) {
  const char* op = "planned_layer_statistics";
  return statistics_of(layers_of(op, plan, layers, tiles, tile, ref_sq_norms), ref_sq_norms, plan);
}

Tensor planned_rotation_cpu(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                            std::optional<Tensor> ref_sq_norms) {
  const char* op = "planned_layer_rotation";
  return rotation_of(layers_of(op, plan, layers, tiles, tile, ref_sq_norms), ref_sq_norms, plan);
}

Tensor planned_sums_cpu(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                        std::optional<Tensor> ratio) {
  const char* op = "planned_layer_sums";
  check_ratio(op, ratio, layers, plan);
  return sums_of(layers_of(op, plan, layers, tiles, tile, std::nullopt), ratio, plan);
}

void record_rotation_cpu(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                         std::optional<Tensor> ref_sq_norms, Tensor history, Tensor cursor) {
  const char* op = "record_layer_rotation";
  const Layers planned = layers_of(op, plan, layers, tiles, tile, ref_sq_norms);
  check_history(op, history, cursor, layers, plan);
  int64_t& next = *static_cast<int64_t*>(cursor.mutable_data_ptr());
  check(next >= 0 && next < std::numeric_limits<int64_t>::max(), op,
        "cursor: expected 0 or more, and less than 2^63 - 1, got ", next);
  float* const rows = static_cast<float*>(history.mutable_data_ptr());
  write_rotation(planned, ref_sq_norms, rows + row_of(next, history.size(0)) * layers);
  ++next;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) {
  m.impl("layer_statistics", TORCH_BOX(&statistics_cpu));
  m.impl("layer_rotation", TORCH_BOX(&rotation_cpu));
  m.impl("layer_sums", TORCH_BOX(&sums_cpu));
  m.impl("plan_layers", TORCH_BOX(&plan_cpu));
  m.impl("planned_layer_statistics", TORCH_BOX(&planned_statistics_cpu));
  m.impl("planned_layer_rotation", TORCH_BOX(&planned_rotation_cpu));
  m.impl("planned_layer_sums", TORCH_BOX(&planned_sums_cpu));
  m.impl("record_layer_rotation", TORCH_BOX(&record_rotation_cpu));
}

}  // namespace cpfast::layer_statistics
