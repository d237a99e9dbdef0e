// shuffled_slice(indices, count, start, size, seed, epoch, stream, cursor) -> [size]
//
// indices   [N] int64 or int32, contiguous: select_samples' selection, ascending
// count     [] or [1] int64, on the device: how many of them there are, at most N
// start     the first position, from 0
// size      how many positions
// cursor    optional [] or [1] int64, on the device: added to start
// result    dtype of indices: out[i] = indices[pi(p)] with p = cursor + start + i, pi being the
//           permutation of [0, count) with which select_samples shuffles; -1 where p is not in it
//
// Slices that meet are the shuffled selection of the same seed, epoch and stream, to the bit; no
// more than a slice of it is ever stored, and count and cursor are never read by the host.
#pragma once

#include "checks.h"
#include "dispatch.h"
#include "permutation.h"

#include <cstdint>
#include <optional>

namespace cpfast::shuffled_slice {

// start + cursor, start not being negative: past all samples where that is past all numbers.
CPFAST_HOST_DEVICE inline int64_t position(int64_t start, int64_t cursor) {
  constexpr int64_t kLast = INT64_MAX;
  return cursor > kLast - start ? kLast : start + cursor;
}

inline void check_number(const char* name, const Tensor& number, const Tensor& indices) {
  const char* op = "shuffled_slice";
  check(number.dim() <= 1 && number.numel() == 1, op, name, ": expected shape [], got ",
        shape_of(number));
  check(number.scalar_type() == ScalarType::Long, op, name, ": expected dtype int64, got ",
        dtype_name(number.scalar_type()));
  check(same_device(number, indices), op, name, ": expected device ", device_of(indices), ", got ",
        device_of(number));
}

inline void check_arguments(const Tensor& indices, const Tensor& count, int64_t start, int64_t size,
                            const std::optional<Tensor>& cursor) {
  const char* op = "shuffled_slice";
  check(indices.dim() == 1, op, "indices: expected shape [N], got ", shape_of(indices));
  check_vector(op, "indices", indices, indices.size(0),
               indices.scalar_type() == ScalarType::Int ? ScalarType::Int : ScalarType::Long,
               indices);
  check_number("count", count, indices);
  check(start >= 0, op, "start: expected a position from 0 on, got ", start);
  check(size >= 0, op, "size: expected a number from 0 on, got ", size);
  if (cursor) check_number("cursor", *cursor, indices);
}

}  // namespace cpfast::shuffled_slice
