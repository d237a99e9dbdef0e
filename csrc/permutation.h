// A keyed random permutation of [0, n) that is evaluated one position at a time and never stored:
// a Feistel network on the next power of two, walked along its cycle until it lands below n
// (Black and Rogaway 2002; for shuffling: Mitchell et al., arXiv 2106.06161). The CPU and CUDA
// kernels and the Python reference share these integers, so they draw the same samples.
#pragma once

#include "dispatch.h"

#include <cstdint>

namespace cpfast {

// What a permutation is drawn for; permutations of different purposes are independent.
enum class Purpose : uint64_t { kSubset = 1, kShuffle = 2 };

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
CPFAST_HOST_DEVICE inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

struct Permutation {
  static constexpr int kRounds = 8;
  // On 4 bits every round is an even permutation, which shows in the orders of 5 or 6 items
  // (chi-square 12 and 66 standard deviations off); on 6 bits they are uniform.
  static constexpr int kMinBits = 6;

  uint64_t n;
  int left_bits, right_bits;
  uint32_t keys[kRounds];

  // n < 2^62.
  CPFAST_HOST_DEVICE Permutation(uint64_t n, uint64_t seed, uint64_t epoch, uint64_t stream,
                                 Purpose purpose)
      : n(n) {
    int bits = kMinBits;
    while ((uint64_t{1} << bits) < n) ++bits;
    left_bits = bits / 2;
    right_bits = bits - left_bits;
    uint64_t state = mix64(seed);
    state = mix64(state ^ epoch);
    state = mix64(state ^ stream);
    state = mix64(state ^ static_cast<uint64_t>(purpose));
    for (int i = 0; i < kRounds; ++i) {
      state = mix64(state);
      keys[i] = static_cast<uint32_t>(state >> 32);
    }
  }

  // The finaliser of MurmurHash3 (Appleby 2011), over any 32-bit word type.
  template <typename Word>
  CPFAST_HOST_DEVICE static Word round(Word x) {
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
  }

  // One pass through the network: a permutation of [0, 2^(left_bits + right_bits)).
  CPFAST_HOST_DEVICE uint64_t step(uint64_t x) const {
    uint32_t left = static_cast<uint32_t>(x >> right_bits);
    uint32_t right = static_cast<uint32_t>(x & ((uint64_t{1} << right_bits) - 1));
    step(left, right);
    return (static_cast<uint64_t>(left) << right_bits) | right;
  }

  template <typename Word>
  CPFAST_HOST_DEVICE void step(Word& left, Word& right) const {
    const uint32_t left_mask = (uint32_t{1} << left_bits) - 1;
    const uint32_t right_mask = (uint32_t{1} << right_bits) - 1;
    for (int i = 0; i < kRounds; i += 2) {
      left = left ^ (round(right ^ keys[i]) & left_mask);
      right = right ^ (round(left ^ keys[i + 1]) & right_mask);
    }
  }

  CPFAST_HOST_DEVICE uint64_t operator()(uint64_t x) const {
    do x = step(x);
    while (x >= n);
    return x;
  }
};

}  // namespace cpfast
