// Tiles of select_samples; included by foreach_isa.h.

inline constexpr int kWordLanes = CPFAST_VECTOR_BYTES / 4;

// positions[i] = permutation(first + i) for i < n; positions has room for a whole last vector.
inline void permute_range(const Permutation& permutation, int64_t first, int64_t n,
                          uint32_t* positions) {
  const uint32_t right_mask = (uint32_t{1} << permutation.right_bits) - 1;
  const uint32_t size = static_cast<uint32_t>(permutation.n);
  Words lane = {};
  for (int l = 0; l < kWordLanes; ++l) lane[l] = l;
  for (int64_t i = 0; i < n; i += kWordLanes) {
    Words x = lane + static_cast<uint32_t>(first + i);
    // Lanes past n would walk where no cycle needs to lead below size.
    const Words needed = (Words)(lane < static_cast<uint32_t>(std::min<int64_t>(n - i, kWordLanes)));
    Words walking = needed;
    for (;;) {
      Words left = x >> permutation.right_bits, right = x & right_mask;
      permutation.step(left, right);
      const Words next = (left << permutation.right_bits) | right;
      x = walking ? next : x;
      walking &= (Words)(x >= size);
      uint32_t any = 0;
      for (int l = 0; l < kWordLanes; ++l) any |= walking[l];
      if (!any) break;
    }
    std::memcpy(positions + i, &x, sizeof(x));
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

// Marks the kept samples of a tile, one bit each; returns their number.
inline int64_t tile_mark(const float* scores, int64_t n, float threshold,
                         const Permutation& subset, int64_t first_rank, int64_t below,
                         int64_t subset_size, uint64_t* marks) {
  uint32_t order[kTile + kWordLanes];
  const bool narrow = subset.n < (uint64_t{1} << 32);
  if (narrow) permute_range(subset, first_rank, below, order);
  int64_t kept = 0, rank = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i % 64 == 0) marks[i / 64] = 0;
    bool keep = true;
    if (scores[i] < threshold) {
      const uint64_t at = narrow ? order[rank] : subset(first_rank + rank);
      keep = at < static_cast<uint64_t>(subset_size);
      ++rank;
    }
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
