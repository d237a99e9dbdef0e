// A Permutation of many positions at a time, and what goes with it: bits and compressed lanes of
// vectors. Included by kernel files, inside the namespace of their instruction set.

inline constexpr int kWordLanes = CPFAST_VECTOR_BYTES / 4;
inline constexpr int64_t kPermuted = 4096;  // positions at a time, at most

// One bit a lane of what a comparison gave.
inline uint32_t lane_bits(Int<float> lanes) {
#if CPFAST_VECTOR_BYTES == 64
  return _mm512_movepi32_mask((__m512i)lanes);
#elif CPFAST_VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)lanes);
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)lanes);
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWordLanes; ++i) bits |= (lanes[i] & 1u) << i;
  return bits;
#endif
}

// Stores the lanes whose bit is set, and behind them what is overwritten next: `to` has room for
// a whole vector.
inline void compress(uint32_t* to, Words values, uint32_t bits) {
#if CPFAST_VECTOR_BYTES == 64
  // In a register, for to memory it takes some 100 cycles on Zen 4.
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(bits, (__m512i)values));
#elif CPFAST_VECTOR_BYTES == 32
  // The numbers of the lanes, a byte each, and of those the wanted ones.
  const uint64_t wanted = _pdep_u64(bits, 0x0101010101010101) * 0xff;
  const __m128i lanes = _mm_cvtsi64_si128(_pext_u64(0x0706050403020100, wanted));
  _mm256_storeu_si256((__m256i*)to,
                      _mm256_permutevar8x32_epi32((__m256i)values, _mm256_cvtepu8_epi32(lanes)));
#else
  for (int i = 0; i < kWordLanes; ++i) {
    *to = values[i];
    to += bits >> i & 1;
  }
#endif
}

// Bit i of `bits` goes to the i-th set bit of `mask`.
inline uint64_t deposit(uint64_t bits, uint64_t mask) {
#if CPFAST_VECTOR_BYTES >= 32
  return _pdep_u64(bits, mask);
#else
  uint64_t result = 0;
  for (; mask; mask &= mask - 1, bits >>= 1) result |= bits & 1 ? mask & -mask : 0;
  return result;
#endif
}

inline uint32_t first_bits(int64_t n) {
  return (uint32_t{1} << std::min<int64_t>(n, kWordLanes)) - 1;
}

template <bool kBack>
inline Words permute_step(const Permutation& permutation, Words x) {
  Words left = x >> permutation.right_bits;
  Words right = x & ((uint32_t{1} << permutation.right_bits) - 1);
  permutation.step<kBack>(left, right);
  return (left << permutation.right_bits) | right;
}

// to[i] = permutation(first + i), or its inverse, for i < n <= kPermuted; `to` has room for whole
// vectors, and the permutation is one of fewer than 2^32. All walk at once, and those that have
// not arrived are gathered for the next step: per vector, 16 lanes would wait for the slowest.
template <bool kBack>
inline void permute_range(const Permutation& permutation, int64_t first, int64_t n, uint32_t* to) {
  const uint32_t size = static_cast<uint32_t>(permutation.n);
  uint32_t walkers[kPermuted + kWordLanes], places[kPermuted + kWordLanes];
  Words lane_numbers;
  for (int i = 0; i < kWordLanes; ++i) lane_numbers[i] = i;
  int64_t walking = 0;
  const auto gather = [&](Words x, Words place, int64_t lanes) {
    const uint32_t bits = lane_bits(x >= size) & first_bits(lanes);
    compress(walkers + walking, x, bits);
    compress(places + walking, place, bits);
    walking += __builtin_popcount(bits);
  };
  for (int64_t i = 0; i < n; i += kWordLanes) {
    const Words place = lane_numbers + static_cast<uint32_t>(i);
    const Words x = permute_step<kBack>(permutation, place + static_cast<uint32_t>(first));
    std::memcpy(to + i, &x, sizeof(x));
    gather(x, place, n - i);
  }
  while (walking > 0) {
    const int64_t last = walking;
    walking = 0;
    for (int64_t i = 0; i < last; i += kWordLanes) {
      Words x, place;
      std::memcpy(&x, walkers + i, sizeof(x));
      std::memcpy(&place, places + i, sizeof(place));
      x = permute_step<kBack>(permutation, x);
      const int64_t lanes = std::min<int64_t>(kWordLanes, last - i);
      for (int64_t k = 0; k < lanes; ++k) to[place[k]] = x[k];
      gather(x, place, lanes);
    }
  }
}
