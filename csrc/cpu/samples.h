// What losses do with all samples of a batch.
#pragma once

#include "../checks.h"

namespace cpfast {

// In eight lanes, so that a million rows do not wait for each other.
template <typename R>
inline double sum_of(const R* values, int64_t n) {
  double lanes[8] = {}, sum = 0;
  for (int64_t i = 0; i < n; ++i) lanes[i % 8] += values[i];
  for (const double lane : lanes) sum += lane;
  return sum;
}

inline void check_index(const char* op, const Tensor& index, int64_t samples) {
  const int64_t* at = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.size(0); ++i)
    check(at[i] >= 0 && at[i] < samples, op, "index[", i, "]: expected a sample in [0, ", samples,
          "), got ", at[i]);
}

}  // namespace cpfast
