#include "../layer_statistics.h"

#include "isa.h"

#include <cstring>

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
  const Layer* at;
  int64_t count, tiles, tile;

  int64_t elements() const { return at[count - 1].first_element + at[count - 1].numel; }
};

#define CPFAST_KERNEL "layer_statistics_kernel.h"
#include "foreach_isa.h"

// A thread is worth waking for so many elements (about 5 us of work).
constexpr int64_t kGrain = 65536;

// finish(l, sums) for all layers.
template <typename Finish>
void for_sums(const Layers& layers, bool all, const std::optional<Tensor>& ref_sq_norms,
              const Finish& finish) {
  std::vector<Sums> partials(layers.tiles);
  // Shares of equal elements, not of equal tiles: those at the ends of layers are short.
  torch::stable::parallel_for(0, layers.elements(), kGrain, [&](int64_t begin, int64_t end) {
    CPFAST_DISPATCH(sum_tiles)(layers, begin, end, all, !ref_sq_norms, partials.data());
  });
  const double* norms = ref_sq_norms ? ref_sq_norms->const_data_ptr<double>() : nullptr;
  for (int64_t l = 0; l < layers.count; ++l) {
    const Layer& layer = layers.at[l];
    Sums sums;
    for (int64_t t = 0; t < tiles_of(layer.numel, layers.tile); ++t)
      sums.add(partials[layer.first_tile + t]);
    if (norms) sums.rr = norms[l];
    finish(l, sums);
  }
}

Tensor statistics_of(const Layers& layers, const std::optional<Tensor>& ref_sq_norms,
                     const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, {kRows, layers.count}, ScalarType::Float);
  float* const to = static_cast<float*>(out.mutable_data_ptr());
  for_sums(layers, /*all=*/true, ref_sq_norms, [&](int64_t l, const Sums& sums) {
    finish(sums, layers.at[l].numel, to, l, layers.count);
  });
  return out;
}

void write_rotation(const Layers& layers, const std::optional<Tensor>& ref_sq_norms, float* to) {
  for_sums(layers, /*all=*/false, ref_sq_norms,
           [&](int64_t l, const Sums& sums) { to[l] = cosine_distance(sums); });
}

Tensor rotation_of(const Layers& layers, const std::optional<Tensor>& ref_sq_norms,
                   const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, {layers.count}, ScalarType::Float);
  write_rotation(layers, ref_sq_norms, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

Layers layers_of(const Table& table) {
  return {table.layers.data(), static_cast<int64_t>(table.layers.size()), table.tiles, table.tile};
}

Layers layers_of(const char* op, const Tensor& plan, int64_t layers, int64_t tiles, int64_t tile,
                 const std::optional<Tensor>& ref_sq_norms) {
  check_plan(op, plan, layers * static_cast<int64_t>(sizeof(Layer)));
  check_norms(op, ref_sq_norms, layers, plan);
  return {static_cast<const Layer*>(plan.const_data_ptr()), layers, tiles, tile};
}

}  // namespace

Tensor statistics_cpu(std::vector<Tensor> params, std::vector<Tensor> refs,
                      std::optional<Tensor> ref_sq_norms) {
  const Table table = checked_layers("layer_statistics", params, refs);
  check_norms("layer_statistics", ref_sq_norms, layers_of(table).count, params[0]);
  return statistics_of(layers_of(table), ref_sq_norms, params[0]);
}

Tensor rotation_cpu(std::vector<Tensor> params, std::vector<Tensor> refs,
                    std::optional<Tensor> ref_sq_norms) {
  const Table table = checked_layers("layer_rotation", params, refs);
  check_norms("layer_rotation", ref_sq_norms, layers_of(table).count, params[0]);
  return rotation_of(layers_of(table), ref_sq_norms, params[0]);
}

std::tuple<Tensor, int64_t, int64_t, int64_t> plan_cpu(std::vector<Tensor> params,
                                                       std::vector<Tensor> refs) {
  const Table table = checked_layers("plan_layers", params, refs);
  check_walks("plan_layers", table);
  const Layers layers = layers_of(table);
  const int64_t bytes = layers.count * static_cast<int64_t>(sizeof(Layer));
  Tensor plan = torch::stable::new_empty(params[0], {bytes}, ScalarType::Byte);
  std::memcpy(plan.mutable_data_ptr(), layers.at, bytes);
  return {plan, layers.count, layers.tiles, layers.tile};
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

void record_rotation_cpu(Tensor plan, int64_t layers, int64_t tiles, int64_t tile,
                         std::optional<Tensor> ref_sq_norms, Tensor history, Tensor cursor) {
  const char* op = "record_layer_rotation";
  const Layers planned = layers_of(op, plan, layers, tiles, tile, ref_sq_norms);
  check_history(op, history, cursor, layers, plan);
  int64_t& next = *static_cast<int64_t*>(cursor.mutable_data_ptr());
  float* const rows = static_cast<float*>(history.mutable_data_ptr());
  write_rotation(planned, ref_sq_norms, rows + next % history.size(0) * layers);
  ++next;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) {
  m.impl("layer_statistics", TORCH_BOX(&statistics_cpu));
  m.impl("layer_rotation", TORCH_BOX(&rotation_cpu));
  m.impl("plan_layers", TORCH_BOX(&plan_cpu));
  m.impl("planned_layer_statistics", TORCH_BOX(&planned_statistics_cpu));
  m.impl("planned_layer_rotation", TORCH_BOX(&planned_rotation_cpu));
  m.impl("record_layer_rotation", TORCH_BOX(&record_rotation_cpu));
}

}  // namespace cpfast::layer_statistics
