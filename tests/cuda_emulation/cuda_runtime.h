// What the kernels use of CUDA, on the host.
#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/macros/Macros.h>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
// Thread-local, for then all of them lie in one piece of memory, which can be overwritten before
// every block. (GCC ignores a section attribute on the static variables of templates.)
#define __shared__ static thread_local

#undef CUDA_KERNEL_ASSERT
#define CUDA_KERNEL_ASSERT(condition)              \
  do {                                             \
    if (!(condition)) emulation::trap(#condition); \
  } while (0)

struct Index3 {
  unsigned x, y, z;
};
extern Index3 threadIdx, blockIdx, gridDim;

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace emulation {

[[noreturn]] void trap(const char* reason);
int lane();

// What lanes can meet at. Each kind has room for the size of a value and a distance between lanes.
enum Collective {
  kSyncWarp = 1 << 10,
  kShuffle = 2 << 10,
  kXor = 3 << 10,
  kUp = 4 << 10,
  kBallot = 5 << 10,
};

// Leaves this lane's bits, waits until all lanes of the mask have, and returns those of all lanes.
// The lanes must have come with equal labels.
const uint64_t* exchange(unsigned mask, uint64_t bits, int label);

template <typename T>
T exchange_with(unsigned mask, T value, int from, int label) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  if (from < 0 || from > 31 || !(mask >> from & 1)) trap("a shuffle from a lane outside the mask");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = exchange(mask, bits, label + 32 * static_cast<int>(sizeof(T)));
  std::memcpy(&value, &all[from], sizeof(T));
  return value;
}

inline void store(uint4* to, const uint4& words) { *to = words; }

// Where the device's results may differ from the host's, they do: by as many units in the last
// place as CUDA documents, off the nearest number, drawn by the bits of the argument.
template <typename Real>
using Wide = std::conditional_t<std::is_same_v<Real, float>, double, long double>;

// In [-most, most].
template <typename Real>
int drawn_by(Real argument, int most) {
  uint64_t bits = 0;
  std::memcpy(&bits, &argument, sizeof(argument));
  bits = (bits ^ bits >> 32) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ bits >> 29) * 0xbf58476d1ce4e5b9u;
  return static_cast<int>((bits >> 32) * (2 * most + 1u) >> 32) - most;
}

// What a number of Real holds exactly stays so: exp(0), log(1).
template <typename Real>
Real within_ulps(int most, Wide<Real> exact, Real argument) {
  const Real nearest = static_cast<Real>(exact), size = std::fabs(nearest);
  if (nearest == exact || !std::isfinite(nearest)) return nearest;
  const Wide<Real> ulp = static_cast<Wide<Real>>(size) - std::nextafter(size, Real(0));
  return static_cast<Real>(nearest + drawn_by(argument, most) * ulp);
}

inline float exp2_within_2_ulps(float x) { return within_ulps(2, std::exp2(double{x}), x); }

// ex2.approx.ftz.f32
inline float exp2_approx(float x) {
  const auto flush = [](float y) { return std::fabs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y; };
  return flush(exp2_within_2_ulps(flush(x)));
}

}  // namespace emulation

// In the kernels' own namespace, where their calls find these before those of the host.
namespace cpfast {

inline float exp(float x) { return emulation::within_ulps(2, std::exp(double{x}), x); }
inline float log(float x) { return emulation::within_ulps(1, std::log(double{x}), x); }
inline float log1p(float x) { return emulation::within_ulps(1, std::log1p(double{x}), x); }
inline double exp(double x) { return emulation::within_ulps(1, expl(x), x); }
inline double log(double x) { return emulation::within_ulps(1, logl(x), x); }
inline double log1p(double x) { return emulation::within_ulps(1, log1pl(x), x); }

}  // namespace cpfast

void __syncthreads();
void __nanosleep(unsigned nanoseconds);

inline void __syncwarp() { emulation::exchange(0xffffffffu, 0, emulation::kSyncWarp); }

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int from) {
  return emulation::exchange_with(mask, value, from, emulation::kShuffle);
}

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int offset) {
  return emulation::exchange_with(mask, value, emulation::lane() ^ offset,
                                  emulation::kXor + offset);
}

template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, int offset) {
  const int lane = emulation::lane();
  return emulation::exchange_with(mask, value, lane < offset ? lane : lane - offset,
                                  emulation::kUp + offset);
}

inline unsigned __ballot_sync(unsigned mask, bool vote) {
  const uint64_t* votes = emulation::exchange(mask, vote, emulation::kBallot);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i)
    if ((mask >> i & 1) && votes[i]) ballot |= 1u << i;
  return ballot;
}

inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

template <typename T>
inline T __ldg(const T* from) {
  return *from;
}

template <typename T>
inline T __ldcg(const T* from) {
  return *from;
}

inline float __expf(float x) { return emulation::exp2_within_2_ulps(x * 1.44269504f); }

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i)
    chosen |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return chosen;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline int __popc(unsigned word) { return __builtin_popcount(word); }

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Threads change places only where they meet, never within one of these.
template <typename Number>
inline Number atomicAdd(Number* at, Number value) {
  const Number old = *at;
  *at += value;
  return old;
}

template <typename Number>
inline Number atomicMax(Number* at, Number value) {
  const Number old = *at;
  if (value > old) *at = value;
  return old;
}

inline unsigned atomicOr(unsigned* at, unsigned bits) {
  const unsigned old = *at;
  *at |= bits;
  return old;
}

inline void __threadfence() {}
