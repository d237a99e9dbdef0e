// Tiles of select_samples; included by foreach_isa.h.

inline constexpr int kWordLanes = CPFAST_VECTOR_BYTES / 4;

inline void permute_step(const Permutation& permutation, uint32_t* x, int64_t n) {
  const uint32_t right_mask = (uint32_t{1} << permutation.right_bits) - 1;
  for (int64_t i = 0; i < n; i += kWordLanes) {
    Words word;
    std::memcpy(&word, x + i, sizeof(word));
    Words left = word >> permutation.right_bits, right = word & right_mask;
    permutation.step(left, right);
    word = (left << permutation.right_bits) | right;
    std::memcpy(x + i, &word, sizeof(word));
  }
}

// positions[i] = permutation(first + i) for i < n <= kTile. All walk at once, and those that have
// not arrived are gathered for the next step: per vector, 16 lanes would wait for the slowest.
inline void permute_range(const Permutation& permutation, int64_t first, int64_t n,
                          uint32_t* positions) {
  const uint32_t size = static_cast<uint32_t>(permutation.n);
  uint32_t walkers[kTile + kWordLanes];
  uint16_t pending[kTile + 1];
  for (int64_t i = 0; i < n; ++i) positions[i] = static_cast<uint32_t>(first + i);
  permute_step(permutation, positions, n);
  int64_t left = 0;
  for (int64_t i = 0; i < n; ++i) {
    pending[left] = static_cast<uint16_t>(i);
    left += positions[i] >= size;
  }
  while (left > 0) {
    for (int64_t i = 0; i < left; ++i) walkers[i] = positions[pending[i]];
    permute_step(permutation, walkers, left);
    int64_t still = 0;
    for (int64_t i = 0; i < left; ++i) {
      const uint16_t at = pending[i];
      positions[at] = walkers[i];
      pending[still] = at;
      still += walkers[i] >= size;
    }
    left = still;
  }
}

// Sum and number of the finite scores.
inline void tile_sum(const float* scores, int64_t n, double& sum, int64_t& finite) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  double sums[8] = {};
  int64_t counts[8] = {};
  for (int64_t i = 0; i < n; ++i) {
    const bool is_finite = scores[i] >= -kLargest && scores[i] <= kLargest;
    sums[i % 8] += is_finite ? static_cast<double>(scores[i]) : 0.0;
    counts[i % 8] += is_finite;
  }
  for (int lane = 0; lane < 8; ++lane) {
    sum += sums[lane];
    finite += counts[lane];
  }
}

inline int64_t tile_below(const float* scores, int64_t n, float threshold) {
  int32_t below = 0;
  for (int64_t i = 0; i < n; ++i) below += scores[i] < threshold;
  return below;
}

// Marks the kept samples of a tile, one bit each; returns their number. Without branches: which
// samples are below the mean is not to be predicted.
inline int64_t tile_mark(const float* scores, int64_t n, float threshold,
                         const Permutation& subset, int64_t first_rank, int64_t below,
                         int64_t subset_size, uint64_t* marks) {
  uint16_t sample_of_rank[kTile + 1];
  int64_t rank = 0;
  for (int64_t word = 0; word * 64 < n; ++word) {
    uint64_t bits = 0;
    const int64_t end = std::min<int64_t>(n, word * 64 + 64);
    for (int64_t i = word * 64; i < end; ++i) {
      const bool is_below = scores[i] < threshold;
      sample_of_rank[rank] = static_cast<uint16_t>(i);
      rank += is_below;
      bits |= uint64_t{!is_below} << (i % 64);
    }
    marks[word] = bits;
  }

  uint32_t order[kTile + kWordLanes];
  const bool narrow = subset.n < (uint64_t{1} << 32);
  if (narrow) permute_range(subset, first_rank, below, order);
  int64_t kept = n - below;
  for (rank = 0; rank < below; ++rank) {
    const uint64_t at = narrow ? order[rank] : subset(first_rank + rank);
    const bool keep = at < static_cast<uint64_t>(subset_size);
    const uint16_t i = sample_of_rank[rank];
    marks[i / 64] |= uint64_t{keep} << (i % 64);
    kept += keep;
  }
  return kept;
}

// Writes the kept samples of a tile, the first of which has rank first_kept among all of them.
inline void tile_write(const float* scores, int64_t first_sample, int64_t n, float threshold,
                       float weight, const uint64_t* marks, const Permutation* shuffle,
                       int64_t first_kept, int64_t kept, int64_t* indices, float* weights) {
  uint32_t order[kTile + kWordLanes];
  const bool narrow = shuffle && shuffle->n < (uint64_t{1} << 32);
  if (narrow) permute_range(*shuffle, first_kept, kept, order);
  int64_t rank = 0;
  for (int64_t word = 0; word * 64 < n; ++word)
    for (uint64_t bits = marks[word]; bits; bits &= bits - 1, ++rank) {
      const int64_t i = word * 64 + __builtin_ctzll(bits);
      const int64_t position = narrow    ? order[rank]
                               : shuffle ? (*shuffle)(first_kept + rank)
                                         : first_kept + rank;
      indices[position] = first_sample + i;
      weights[position] = scores[i] < threshold ? weight : 1.0f;
    }
}
