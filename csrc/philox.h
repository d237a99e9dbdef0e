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

// The low half of `key` is the first of its two words.
CPFAST_HOST_DEVICE constexpr Words4 philox4x32(Words4 counter, uint64_t key) {
  uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xd2511f53u} * counter.x, b = uint64_t{0xcd9e8d57u} * counter.z;
    counter = {static_cast<uint32_t>(b >> 32) ^ counter.y ^ low, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter.w ^ high, static_cast<uint32_t>(a)};
    low += 0x9e3779b9u;
    high += 0xbb67ae85u;
  }
  return counter;
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
