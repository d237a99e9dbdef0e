// Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011): four random words are a function of a key and a counter, and of no state.
#pragma once

#include "dispatch.h"

#include <cstdint>

namespace cpfast {

struct Words4 {
  uint32_t x, y, z, w;

  constexpr bool operator==(const Words4&) const = default;
};

struct Philox {
  static constexpr int kRounds = 10;
  uint64_t key;  // its low half is the first of two words

  CPFAST_HOST_DEVICE static constexpr uint32_t high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
  }

  // Makes random words of a counter, over any 32-bit word type, given the high words of products.
  template <typename Word, typename High>
  CPFAST_HOST_DEVICE constexpr void operator()(Word (&words)[4], const High& high) const {
    uint32_t first = static_cast<uint32_t>(key), second = static_cast<uint32_t>(key >> 32);
    for (int i = 0; i < kRounds; ++i) {
      const Word a = high(words[0], 0xd2511f53u), b = high(words[2], 0xcd9e8d57u);
      const Word a_low = words[0] * 0xd2511f53u, b_low = words[2] * 0xcd9e8d57u;
      words[0] = b ^ words[1] ^ first;
      words[1] = b_low;
      words[2] = a ^ words[3] ^ second;
      words[3] = a_low;
      first += 0x9e3779b9u;
      second += 0xbb67ae85u;
    }
  }
};

CPFAST_HOST_DEVICE constexpr Words4 philox4x32(Words4 counter, uint64_t key) {
  uint32_t words[4] = {counter.x, counter.y, counter.z, counter.w};
  Philox{key}(words, Philox::high);
  return {words[0], words[1], words[2], words[3]};
}

// The known answers that its authors publish with it (Random123, kat_vectors).
static_assert(philox4x32({0, 0, 0, 0}, 0) ==
              Words4{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
static_assert(philox4x32({~0u, ~0u, ~0u, ~0u}, ~uint64_t{0}) ==
              Words4{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
static_assert(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
                         0x299f31d0a4093822u) ==
              Words4{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});

}  // namespace cpfast
