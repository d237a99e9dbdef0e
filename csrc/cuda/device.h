// What kernels share: 16-byte accesses, and sums over a warp or a block in a fixed order.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace cpfast {

template <typename Real>
constexpr Real kLowest = -std::numeric_limits<Real>::infinity();
template <typename Real>
constexpr Real kNaN = std::numeric_limits<Real>::quiet_NaN();

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

// 16 bytes from any address of a T, and no byte beside them: a tensor may end where its allocation
// does. What accesses of 4 or 8 bytes are more than one of 16, they save in shifting words.
template <typename T>
__device__ inline uint4 load_across(const T* from) {
  if constexpr (sizeof(T) == 8) {
    const auto* at = reinterpret_cast<const uint64_t*>(from);
    const uint64_t low = __ldg(at), high = __ldg(at + 1);
    return {static_cast<unsigned>(low), static_cast<unsigned>(low >> 32),
            static_cast<unsigned>(high), static_cast<unsigned>(high >> 32)};
  } else {
    const auto* at = reinterpret_cast<const unsigned*>(from);
    if (sizeof(T) == 4 || reinterpret_cast<uintptr_t>(from) % 4 == 0)
      return {__ldg(at), __ldg(at + 1), __ldg(at + 2), __ldg(at + 3)};
    // Between words: the first and the last element come alone.
    const auto* halves = reinterpret_cast<const unsigned short*>(from);
    at = reinterpret_cast<const unsigned*>(halves + 1);
    const unsigned first = unsigned{__ldg(halves)} << 16, last = __ldg(halves + 7);
    // nvcc stores an array of these three to local memory, though nobody reads it there.
    const unsigned second = __ldg(at), third = __ldg(at + 1), fourth = __ldg(at + 2);
    return {__funnelshift_r(first, second, 16), __funnelshift_r(second, third, 16),
            __funnelshift_r(third, fourth, 16), __funnelshift_r(fourth, last, 16)};
  }
}

template <bool kAligned, typename T>
__device__ inline uint4 load_words(const T* from) {
  return kAligned ? __ldg(reinterpret_cast<const uint4*>(from)) : load_across(from);
}

// kCount elements, from a multiple of 16 bytes if kAligned, and no byte beside them. By way of the
// read-only cache also where the kernel writes there later: a gradient over its logits. No thread
// reads what another has written, nor again what it has written itself.
template <bool kAligned, int kCount, typename T, typename Real>
__device__ inline void load(const T* from, Real (&to)[kCount]) {
  static_assert(kCount % kWidth<T> == 0);
  T values[kCount];
  uint4 words[kCount / kWidth<T>];
#pragma unroll
  for (int i = 0; i < kCount / kWidth<T>; ++i)
    words[i] = load_words<kAligned>(from + i * kWidth<T>);
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

// 2^x by the hardware, within 2 ulp; what would be subnormal is 0, which saves the three
// instructions that scale x, and 2^x back.
__device__ inline float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
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

// Is this the last block of the grid to come here? Then it sees what the others have written.
__device__ inline bool is_last_block(unsigned* ticket) {
  __shared__ bool last;
  if (gridDim.x == 1) {
    __syncthreads();
    return true;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// The sum over a block's threads in a fixed order, known to all of them.
template <int kThreads, typename Number>
__device__ Number block_sum(Number value) {
  Number before;
  const Number sum = sum_of_warps<kThreads>(warp_sum(value), before);
  __syncthreads();  // before its shared memory is written again
  return sum;
}

}  // namespace cpfast
