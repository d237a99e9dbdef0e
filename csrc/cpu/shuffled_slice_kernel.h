// Positions of shuffled_slice; included by foreach_isa.h.

#include "permutation_kernel.h"

// out[i] = indices[order(first + i)], i < n <= kPermuted.
template <typename Index>
inline void gather(const Index* indices, const Permutation& order, int64_t first, int64_t n,
                   Index* out) {
  if (order.n < uint64_t{1} << 32) {
    uint32_t positions[kPermuted + kWordLanes];
    permute_range<false>(order, first, n, positions);
    for (int64_t i = 0; i < n; ++i) out[i] = indices[positions[i]];
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = indices[order(first + i)];
  }
}
