// What kernels share: 16-byte accesses, and sums over a warp or a block in a fixed order.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace cpfast {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// What elements of T are computed in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
inline constexpr int kWidth = 16 / sizeof(T);  // elements in one access of 16 bytes

template <typename T>
__device__ inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// 16 bytes from any address of a T, by aligned accesses. They read past both ends of the 16 bytes,
// but not past the aligned 16 bytes in which an end lies, and so never into another page.
template <typename T>
__device__ inline uint4 load_across(const T* from) {
  const unsigned shift = reinterpret_cast<uintptr_t>(from) % 16;
  const uint4* at =
      reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) - shift);
  const uint4 low = __ldg(at), high = __ldg(at + (shift != 0));
  unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = shift & 8 ? words[i + 2] : words[i];
  if constexpr (sizeof(T) < 8) {
#pragma unroll
    for (int i = 0; i < 5; ++i) words[i] = shift & 4 ? words[i + 1] : words[i];
  }
  if constexpr (sizeof(T) < 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = __funnelshift_r(words[i], words[i + 1], shift % 4 * 8);
  }
  return {words[0], words[1], words[2], words[3]};
}

// kCount elements, from a multiple of 16 bytes if kAligned. By way of the read-only cache also where
// the kernel writes there later: a gradient over its logits. No thread reads what another has
// written, nor again what it has written itself.
template <bool kAligned, int kCount, typename T, typename Real>
__device__ inline void load(const T* from, Real (&to)[kCount]) {
  static_assert(kCount % kWidth<T> == 0);
  T values[kCount];
  uint4 words[kCount / kWidth<T>];
#pragma unroll
  for (int i = 0; i < kCount / kWidth<T>; ++i)
    words[i] = kAligned ? __ldg(reinterpret_cast<const uint4*>(from) + i)
                        : load_across(from + i * kWidth<T>);
  std::memcpy(values, words, sizeof(values));
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = static_cast<Real>(values[i]);
}

// kWidth elements to an address that is a multiple of 16 bytes.
template <typename T>
__device__ inline void store(T* to, const Compute<T> (&from)[kWidth<T>]) {
  T values[kWidth<T>];
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i) values[i] = static_cast<T>(from[i]);
  uint4 words;
  std::memcpy(&words, values, sizeof(words));
  // nvcc splits an assignment of uint4 into stores of 4 bytes, and joins not all of them again.
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

// The same in all lanes, for every lane adds the same numbers up to their order in a pair.
template <typename Number>
__device__ inline Number warp_sum(Number value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Sum over the warps of a block, in order, of a value that every lane of a warp knows; `before`
// is that of the warps before this one. Between two calls stands a barrier: they share memory.
template <int kThreads, typename Number>
__device__ inline Number sum_of_warps(Number value, Number& before) {
  constexpr int kWarps = kThreads / 32;
  __shared__ Number values[kWarps];
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) values[warp] = value;
  __syncthreads();
  Number sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i == warp) before = sum;
    sum += values[i];
  }
  return sum;
}

}  // namespace cpfast
