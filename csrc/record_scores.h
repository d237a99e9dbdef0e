// record_scores(Tensor(a!) scores, index, values) -> ()
//
// scores [N] float32, written in place: scores[index[i]] = values[i]
// index  [B] int64 or int32 in [0, N); values [B] float32
//
// Where an index stands in a batch more than once, the highest batch position wins, on every
// device. An index out of range is an error on the CPU, before anything is written; on CUDA it
// traps, as indexing by a tensor does in torch. A signalling NaN, which no computation gives, may
// be recorded as a quiet one. Nothing is allocated.
#pragma once

#include "checks.h"

namespace cpfast::record_scores {

inline void check_arguments(const Tensor& scores, const Tensor& index, const Tensor& values) {
  const char* op = "record_scores";
  check(scores.dim() == 1, op, "scores: expected shape [N], got ", shape_of(scores));
  check_vector(op, "scores", scores, scores.size(0), ScalarType::Float, scores);
  check(index.dim() == 1, op, "index: expected shape [B], got ", shape_of(index));
  check_vector(op, "index", index, index.size(0),
               index.scalar_type() == ScalarType::Int ? ScalarType::Int : ScalarType::Long, scores);
  check_vector(op, "values", values, index.size(0), ScalarType::Float, scores);
  check_apart(op, "values", values, "scores", scores);
  check_apart(op, "index", index, "scores", scores);
}

}  // namespace cpfast::record_scores
