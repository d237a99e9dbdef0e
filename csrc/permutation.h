// A keyed random permutation of [0, n) that is evaluated one position at a time and never stored:
// a Feistel network on the next power of two, walked along its cycle until it lands below n
// (Black and Rogaway 2002; for shuffling: Mitchell et al., arXiv 2106.06161). The CPU and CUDA
// kernels and the Python reference share these integers, so they draw the same samples.
#pragma once

#include "dispatch.h"

#include <cmath>
#include <cstdint>

namespace cpfast {

// What is drawn; draws of different purposes are independent.
enum class Purpose : uint64_t { kSubset = 1, kShuffle = 2, kBernoulli = 3 };

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
CPFAST_HOST_DEVICE inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline uint64_t draw_key(uint64_t seed, uint64_t epoch, uint64_t stream, Purpose purpose) {
  uint64_t key = mix64(seed);
  key = mix64(key ^ epoch);
  key = mix64(key ^ stream);
  return mix64(key ^ static_cast<uint64_t>(purpose));
}

// Made on the host, where n may not be known yet.
struct RoundKeys {
  static constexpr int kRounds = 8;
  uint32_t words[kRounds];

  RoundKeys(uint64_t seed, uint64_t epoch, uint64_t stream, Purpose purpose) {
    uint64_t state = draw_key(seed, epoch, stream, purpose);
    for (uint32_t& word : words) {
      state = mix64(state);
      word = static_cast<uint32_t>(state >> 32);
    }
  }
};

struct Permutation {
  // On 4 bits every round is an even permutation, which shows in the orders of 5 or 6 items
  // (chi-square 12 and 66 standard deviations off); on 6 bits they are uniform.
  static constexpr int kMinBits = 6;

  uint64_t n;
  int left_bits, right_bits;
  RoundKeys keys;

  // n < 2^62.
  CPFAST_HOST_DEVICE Permutation(uint64_t n, const RoundKeys& keys) : n(n), keys(keys) {
    const int bits = n <= (uint64_t{1} << kMinBits) ? kMinBits : bit_width(n - 1);
    left_bits = bits / 2;
    right_bits = bits - left_bits;
  }

  // Of a positive number.
  CPFAST_HOST_DEVICE static int bit_width(uint64_t x) {
#ifdef __CUDA_ARCH__
    return 64 - __clzll(static_cast<long long>(x));
#else
    return 64 - __builtin_clzll(x);
#endif
  }

  // The finaliser of MurmurHash3 (Appleby 2011), over any 32-bit word type.
  template <typename Word>
  CPFAST_HOST_DEVICE static Word round(Word x) {
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
  }

  // One pass through the network, a permutation of [0, 2^(left_bits + right_bits)), or back.
  template <bool kBack, typename Word>
  CPFAST_HOST_DEVICE void step(Word& left, Word& right) const {
    const uint32_t left_mask = (uint32_t{1} << left_bits) - 1;
    const uint32_t right_mask = (uint32_t{1} << right_bits) - 1;
    const uint32_t* const key = keys.words;
    for (int i = 0; i < RoundKeys::kRounds; i += 2) {
      if constexpr (kBack) {
        const int last = RoundKeys::kRounds - 1 - i;
        right = right ^ (round(left ^ key[last]) & right_mask);
        left = left ^ (round(right ^ key[last - 1]) & left_mask);
      } else {
        left = left ^ (round(right ^ key[i]) & left_mask);
        right = right ^ (round(left ^ key[i + 1]) & right_mask);
      }
    }
  }

  template <bool kBack = false>
  CPFAST_HOST_DEVICE uint64_t step(uint64_t x) const {
    uint32_t left = static_cast<uint32_t>(x >> right_bits);
    uint32_t right = static_cast<uint32_t>(x & ((uint64_t{1} << right_bits) - 1));
    step<kBack>(left, right);
    return (static_cast<uint64_t>(left) << right_bits) | right;
  }

  template <bool kBack>
  CPFAST_HOST_DEVICE uint64_t walk(uint64_t x) const {
    do x = step<kBack>(x);
    while (x >= n);
    return x;
  }

  CPFAST_HOST_DEVICE uint64_t operator()(uint64_t x) const { return walk<false>(x); }
  CPFAST_HOST_DEVICE uint64_t inverse(uint64_t x) const { return walk<true>(x); }
};

}  // namespace cpfast
