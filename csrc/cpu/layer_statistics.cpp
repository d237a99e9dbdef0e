#include "../layer_statistics.h"

#include "isa.h"

namespace cpfast::layer_statistics {
namespace {

struct Layer {
  const void *w, *w0;
  ScalarType dtype, ref_dtype;
  int64_t numel, first_tile;
};

template <typename To>
void widen_to(ScalarType dtype, const void* from, int64_t offset, int64_t n, To* to) {
  for_floating(dtype, [&]<typename From>(From) {
    const From* at = static_cast<const From*>(from) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(at[i]);
  });
}

#define CPFAST_KERNEL "layer_statistics_kernel.h"
#include "foreach_isa.h"

std::vector<Sums> layer_sums(const std::vector<Pair>& pairs, bool all,
                             const std::optional<Tensor>& ref_sq_norms) {
  int64_t total = 0;
  for (const Pair& pair : pairs) total += pair.param.numel();
  const int64_t tile = tile_size(total);

  std::vector<Layer> layers;
  std::vector<int32_t> layer_of_tile;
  layers.reserve(pairs.size());
  layer_of_tile.reserve(total / tile + pairs.size());
  for (const Pair& pair : pairs) {
    const int64_t numel = pair.param.numel();
    layer_of_tile.insert(layer_of_tile.end(), (numel + tile - 1) / tile,
                         static_cast<int32_t>(layers.size()));
    layers.push_back({pair.param.const_data_ptr(), pair.ref.const_data_ptr(),
                      pair.param.scalar_type(), pair.ref.scalar_type(), numel,
                      static_cast<int64_t>(layer_of_tile.size()) - (numel + tile - 1) / tile});
  }

  const int64_t tiles = static_cast<int64_t>(layer_of_tile.size());
  std::vector<Sums> partials(tiles);
  // A thread is worth waking for 64K elements (about 10 us of work).
  torch::stable::parallel_for(0, tiles, 65536 / tile, [&](int64_t begin, int64_t end) {
    CPFAST_DISPATCH(sum_tiles)(layers.data(), layer_of_tile.data(), tile, begin, end, all,
                               partials.data());
  });

  std::vector<Sums> sums(pairs.size());
  for (int64_t t = 0; t < tiles; ++t) sums[layer_of_tile[t]].add(partials[t]);
  if (ref_sq_norms)
    for (size_t l = 0; l < sums.size(); ++l) sums[l].rr = ref_sq_norms->const_data_ptr<double>()[l];
  return sums;
}

}  // namespace

Tensor statistics_cpu(std::vector<Tensor> params, std::vector<Tensor> refs,
                      std::optional<Tensor> ref_sq_norms) {
  const auto pairs = checked_pairs("layer_statistics", params, refs, ref_sq_norms);
  const auto sums = layer_sums(pairs, /*all=*/true, ref_sq_norms);
  const int64_t layers = static_cast<int64_t>(pairs.size());
  Tensor out = torch::stable::new_empty(params[0], {kRows, layers}, ScalarType::Float);
  for (int64_t l = 0; l < layers; ++l)
    finish(sums[l], pairs[l].param.numel(), out.mutable_data_ptr<float>(), l, layers);
  return out;
}

Tensor rotation_cpu(std::vector<Tensor> params, std::vector<Tensor> refs,
                    std::optional<Tensor> ref_sq_norms) {
  const auto pairs = checked_pairs("layer_rotation", params, refs, ref_sq_norms);
  const auto sums = layer_sums(pairs, /*all=*/false, ref_sq_norms);
  Tensor out = torch::stable::new_empty(params[0], {static_cast<int64_t>(pairs.size())},
                                        ScalarType::Float);
  for (size_t l = 0; l < sums.size(); ++l) out.mutable_data_ptr<float>()[l] = cosine_distance(sums[l]);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) {
  m.impl("layer_statistics", TORCH_BOX(&statistics_cpu));
  m.impl("layer_rotation", TORCH_BOX(&rotation_cpu));
}

}  // namespace cpfast::layer_statistics
