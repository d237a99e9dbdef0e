// The last of equal indices wins: positions of a batch claim the places of their scores, in the
// table itself. A claim is a negative signalling NaN, of which there are 2^22 - 1 and which no
// computation gives, so that nobody can take a score for a claim. Between two of the three steps
// all threads must have met; larger batches go in parts, in order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace cpfast {

inline constexpr uint32_t kFirstClaim = 0xff800001u, kQuietBit = 0x00400000u;
inline constexpr int64_t kMaxClaims = int64_t{1} << 21;

__device__ inline void clear_place(float* place) { *place = 0; }

__device__ inline void claim_place(float* place, int64_t position) {
  atomicMax(reinterpret_cast<uint32_t*>(place), kFirstClaim + static_cast<uint32_t>(position));
}

// Where others had the same place, they find the winner's claim there, or its score.
__device__ inline void fill_claimed(float* place, int64_t position, float score) {
  volatile uint32_t* const bits = reinterpret_cast<uint32_t*>(place);
  if (*bits != kFirstClaim + static_cast<uint32_t>(position)) return;
  uint32_t value;
  std::memcpy(&value, &score, sizeof(value));
  *bits = value - kFirstClaim < kQuietBit - 1 ? value | kQuietBit : value;
}

}  // namespace cpfast
