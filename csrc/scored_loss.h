// What the losses that score their samples share.
#pragma once

#include "checks.h"

#include <type_traits>

namespace cpfast {

enum class Reduction : int64_t { kNone, kMean, kSum };
enum class Score : int64_t { kLoss, kEl2n, kMargin, kCorrect };

// What inputs of T are computed in.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType compute_dtype(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_table(const char* op, const std::optional<Tensor>& table,
                        const std::optional<Tensor>& index, int64_t score, const Tensor& input,
                        int64_t scores = 4) {
  check(table.has_value() == index.has_value(), op, table ? "index" : "table",
        ": expected one, as ", table ? "table" : "index", " is given");
  check(score >= 0 && score < scores, op, "score: expected an integer in [0, ", scores, "), got ",
        score);
  if (!table) return;
  check(table->dim() == 1, op, "table: expected shape [M], got ", shape_of(*table));
  check_vector(op, "table", *table, table->size(0), ScalarType::Float, input);
  check_vector(op, "index", *index, input.size(0), ScalarType::Long, input);
}

}  // namespace cpfast
