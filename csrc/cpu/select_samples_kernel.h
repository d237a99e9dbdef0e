// Tiles of select_samples; included by foreach_isa.h.

#include "permutation_kernel.h"

// Adds the finite scores to their lanes, and counts them.
inline void add_scores(const float* scores, int64_t n, double* lanes, int64_t& finite) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (int64_t row = 0; row < n; row += kSumLanes) {
    const int end = static_cast<int>(std::min<int64_t>(kSumLanes, n - row));
    int32_t count = 0;
    for (int l = 0; l < end; ++l) {
      const float score = scores[row + l];
      const bool is_finite = std::fabs(score) <= kLargest;
      lanes[l] += static_cast<double>(is_finite ? score : 0.0f);
      count += is_finite;
    }
    finite += count;
  }
}

inline double fold(double* lanes) {
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// Sum and number of the finite scores of a tile.
inline double tile_sum(const float* scores, int64_t n, int64_t& finite) {
  double lanes[kSumLanes] = {};
  add_scores(scores, n, lanes, finite);
  return fold(lanes);
}

inline double sum_of_tiles(const double* sums, int64_t n) {
  double lanes[kSumLanes] = {};
  for (int64_t t = 0; t < n; ++t) lanes[t % kSumLanes] += sums[t];
  return fold(lanes);
}

inline int64_t tile_below(const float* scores, int64_t n, float threshold) {
  int32_t below = 0;
  for (int64_t i = 0; i < n; ++i) below += scores[i] < threshold;
  return below;
}

// Bit i: is scores[i], i < n <= 64, below the threshold?
inline uint64_t below_bits(const float* scores, int64_t n, float threshold) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < n; i += kWordLanes) {
    const Vec<float> score =
        n - i < kWordLanes ? load_part(scores + i, n - i, threshold) : load(scores + i);
    bits |= uint64_t{lane_bits(score < threshold)} << i;
  }
  return bits;
}

// Calls mark(first, n, below) for each 64 samples of a tile, whose kept ones it returns as bits.
template <typename Mark>
inline int64_t mark_words(const float* scores, int64_t n, float threshold, uint64_t* marks,
                          const Mark& mark) {
  int64_t kept = 0;
  for (int64_t first = 0; first < n; first += 64) {
    const int64_t samples = std::min<int64_t>(64, n - first);
    const uint64_t below = below_bits(scores + first, samples, threshold);
    const uint64_t others = ~below & (~uint64_t{0} >> (64 - samples));
    marks[first / 64] = others | (mark(first, below) & below);
    kept += __builtin_popcountll(marks[first / 64]);
  }
  return kept;
}

// Marks the kept samples of a tile, one bit each; returns their number.
inline int64_t tile_mark(const float* scores, int64_t n, float threshold, const Permutation& subset,
                         int64_t first_rank, int64_t below, uint64_t subset_size, uint64_t* marks) {
  uint64_t drawn[kTile / 64 + 2] = {};  // a bit a rank
  if (subset.n < uint64_t{1} << 32) {
    uint32_t order[kTile + kWordLanes];
    permute_range<false>(subset, first_rank, below, order);
    const Words size = Words{} + static_cast<uint32_t>(subset_size);
    for (int64_t rank = 0; rank < below; rank += kWordLanes) {
      Words at;
      std::memcpy(&at, order + rank, sizeof(at));
      drawn[rank / 64] |= uint64_t{lane_bits(at < size)} << (rank % 64);
    }
  } else {
    for (int64_t rank = 0; rank < below; ++rank)
      drawn[rank / 64] |= uint64_t{subset(first_rank + rank) < subset_size} << (rank % 64);
  }
  int64_t rank = 0;
  return mark_words(scores, n, threshold, marks, [&](int64_t, uint64_t below) {
    const int64_t word = rank / 64, shift = rank % 64;
    rank += __builtin_popcountll(below);
    return deposit(drawn[word] >> shift | drawn[word + 1] << 1 << (63 - shift), below);
  });
}

typedef uint64_t Longs __attribute__((vector_size(CPFAST_VECTOR_BYTES)));

// Products of the even lanes.
inline Longs wide_product(Longs a, uint32_t b) {
#if CPFAST_VECTOR_BYTES == 64
  // GCC 12 warns of a variable that its _mm512_mul_epu32 leaves undefined on purpose.
  return (Longs)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(b));
#elif CPFAST_VECTOR_BYTES == 32
  return (Longs)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#else
  return (a & 0xffffffffu) * b;
#endif
}

inline Words high_words(Words a, uint32_t b) {
  const Longs even = wide_product((Longs)a, b) >> 32, odd = wide_product((Longs)a >> 32, b);
  return (Words)(even | (odd & ~uint64_t{0xffffffffu}));
}

// As tile_mark, by the number of each sample; first_sample is a multiple of 128.
inline int64_t tile_draw(const float* scores, int64_t first_sample, int64_t n, float threshold,
                         const Philox& philox, uint64_t drawn_below, uint64_t* marks) {
  uint64_t drawn[kTile / 64];
  // Numbers are up to 2^32 - 1, and drawn_below is from 1 to 2^32.
  const Words largest = Words{} + static_cast<uint32_t>(drawn_below - 1);
  Words lane_numbers;
  for (int i = 0; i < kWordLanes; ++i) lane_numbers[i] = i;
  for (int64_t first = 0; first < n; first += 128) {
    uint64_t row[4] = {};  // 32 samples
    for (int lane = 0; lane < 32; lane += kWordLanes) {
      const uint64_t counter = (first_sample + first) / 4 + lane;
      Words words[4] = {lane_numbers + static_cast<uint32_t>(counter),
                        Words{} + static_cast<uint32_t>(counter >> 32)};
      philox(words, high_words);
      for (int w = 0; w < 4; ++w) row[w] |= uint64_t{lane_bits(words[w] <= largest)} << lane;
    }
    drawn[first / 64] = row[0] | row[1] << 32;
    drawn[first / 64 + 1] = row[2] | row[3] << 32;
  }
  return mark_words(scores, n, threshold, marks,
                    [&](int64_t first, uint64_t) { return drawn[first / 64]; });
}

// Writes the kept samples of a tile, the first of which has rank first_kept among all of them.
template <typename Index>
inline void tile_write(const float* scores, int64_t first_sample, int64_t n, float threshold,
                       float weight, const uint64_t* marks, const Permutation* shuffle,
                       int64_t first_kept, Index* indices, float* weights) {
  uint32_t samples[kTile + kWordLanes], sample_weights[kTile + kWordLanes];
  Words lane_numbers;
  for (int i = 0; i < kWordLanes; ++i) lane_numbers[i] = i;
  const Vec<float> one = splat(1.0f), other = splat(weight);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kWordLanes) {
    const uint32_t bits = static_cast<uint32_t>(marks[i / 64] >> (i % 64)) & first_bits(n - i);
    const Vec<float> score =
        n - i < kWordLanes ? load_part(scores + i, n - i, threshold) : load(scores + i);
    compress(samples + kept, lane_numbers + static_cast<uint32_t>(i), bits);
    compress(sample_weights + kept, (Words)(score < threshold ? other : one), bits);
    kept += __builtin_popcount(bits);
  }
  if (shuffle == nullptr) {
    for (int64_t k = 0; k < kept; ++k)
      indices[first_kept + k] = static_cast<Index>(first_sample + samples[k]);
    std::memcpy(weights + first_kept, sample_weights, kept * sizeof(float));
    return;
  }
  const auto write = [&](int64_t position, int64_t k) {
    indices[position] = static_cast<Index>(first_sample + samples[k]);
    std::memcpy(weights + position, sample_weights + k, sizeof(float));
  };
  if (shuffle->n < uint64_t{1} << 32) {
    uint32_t order[kTile + kWordLanes];
    permute_range<true>(*shuffle, first_kept, kept, order);
    for (int64_t k = 0; k < kept; ++k) write(order[k], k);
  } else {
    for (int64_t k = 0; k < kept; ++k) write(shuffle->inverse(first_kept + k), k);
  }
}
