#include "../shuffled_slice.h"

#include "launch.h"

namespace cpfast::shuffled_slice {
namespace {

constexpr int kThreads = 256;

struct Slice {
  const void* indices;
  int64_t samples;
  const int64_t *count, *cursor;
  int64_t start, size;
  RoundKeys keys;
  void* out;
};

template <typename Index>
__global__ void __launch_bounds__(kThreads) slice(const __grid_constant__ Slice s) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= s.size) return;
  const int64_t at = position(position(s.start, i), s.cursor ? *s.cursor : 0);
  const int64_t count = min(*s.count, s.samples);
  Index index = -1;
  if (at >= 0 && at < count)
    index = static_cast<const Index*>(s.indices)[Permutation(count, s.keys)(at)];
  static_cast<Index*>(s.out)[i] = index;
}

}  // namespace

Tensor slice_cuda(Tensor indices, Tensor count, int64_t start, int64_t size, int64_t seed,
                  int64_t epoch, int64_t stream, std::optional<Tensor> cursor) {
  check_arguments(indices, count, start, size, cursor);
  Tensor out = torch::stable::new_empty(indices, {size});
  const Slice arguments{indices.const_data_ptr(),
                        indices.size(0),
                        count.const_data_ptr<int64_t>(),
                        cursor ? cursor->const_data_ptr<int64_t>() : nullptr,
                        start,
                        size,
                        RoundKeys(seed, epoch, stream, Purpose::kShuffle),
                        out.mutable_data_ptr()};
  const Launcher launch(indices);
  launch(indices.scalar_type() == ScalarType::Int ? slice<int32_t> : slice<int64_t>,
         (size + kThreads - 1) / kThreads, kThreads, arguments);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) { m.impl("shuffled_slice", TORCH_BOX(&slice_cuda)); }

}  // namespace cpfast::shuffled_slice
