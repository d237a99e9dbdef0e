#include "../shuffled_slice.h"

#include "isa.h"

namespace cpfast::shuffled_slice {
namespace {

#define CPFAST_KERNEL "shuffled_slice_kernel.h"
#include "foreach_isa.h"

// Positions at a time, some 10 us of work.
constexpr int64_t kPositions = 4096;

template <typename Index>
void slice(const Index* indices, const Permutation& order, int64_t first, int64_t size,
           Index* out) {
  // A negative cursor may ask for positions before the first.
  first = std::max(first, -size);
  const int64_t begin = std::max<int64_t>(0, -first);
  const int64_t end = std::clamp<int64_t>(static_cast<int64_t>(order.n) - first, begin, size);
  torch::stable::parallel_for(
      0, (end - begin + kPositions - 1) / kPositions, 1, [&](int64_t part, int64_t last_part) {
        for (int64_t i = begin + part * kPositions; part < last_part; ++part, i += kPositions)
          CPFAST_DISPATCH(gather<Index>)(indices, order, first + i, std::min(kPositions, end - i),
                                         out + i);
      });
  std::fill(out, out + begin, Index{-1});
  std::fill(out + end, out + size, Index{-1});
}

}  // namespace

Tensor slice_cpu(Tensor indices, Tensor count, int64_t start, int64_t size, int64_t seed,
                 int64_t epoch, int64_t stream, std::optional<Tensor> cursor) {
  check_arguments(indices, count, start, size, cursor);
  Tensor out = torch::stable::new_empty(indices, {size});
  const int64_t first = position(start, cursor ? *cursor->const_data_ptr<int64_t>() : 0);
  const Permutation order(std::clamp<int64_t>(*count.const_data_ptr<int64_t>(), 0, indices.size(0)),
                          RoundKeys(seed, epoch, stream, Purpose::kShuffle));
  if (indices.scalar_type() == ScalarType::Int)
    slice(indices.const_data_ptr<int32_t>(), order, first, size, out.mutable_data_ptr<int32_t>());
  else
    slice(indices.const_data_ptr<int64_t>(), order, first, size, out.mutable_data_ptr<int64_t>());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) { m.impl("shuffled_slice", TORCH_BOX(&slice_cpu)); }

}  // namespace cpfast::shuffled_slice
