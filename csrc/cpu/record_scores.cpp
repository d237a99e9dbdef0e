#include "../record_scores.h"

namespace cpfast::record_scores {
namespace {

// One thread, in batch order: a batch is a few thousand stores, and the last one must win.
template <typename Index>
void record(const Tensor& scores, const Index* at, int64_t batch, const float* value) {
  const int64_t samples = scores.size(0);
  for (int64_t i = 0; i < batch; ++i)
    check(at[i] >= 0 && at[i] < samples, "record_scores", "index[", i,
          "]: expected a sample in [0, ", samples, "), got ", at[i]);
  float* table = scores.mutable_data_ptr<float>();
  for (int64_t i = 0; i < batch; ++i) table[at[i]] = value[i];
}

}  // namespace

void record_cpu(Tensor scores, Tensor index, Tensor values) {
  check_arguments(scores, index, values);
  const float* value = values.const_data_ptr<float>();
  if (index.scalar_type() == ScalarType::Int)
    record(scores, index.const_data_ptr<int32_t>(), index.size(0), value);
  else
    record(scores, index.const_data_ptr<int64_t>(), index.size(0), value);
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) { m.impl("record_scores", TORCH_BOX(&record_cpu)); }

}  // namespace cpfast::record_scores
