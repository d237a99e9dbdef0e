// The sums of one range of tiles; included by foreach_isa.h.

// 32 lanes an accumulator (16 for float64) on every instruction set: the same order of additions.
template <bool kAll, typename W, typename R>
inline void tile_sums(const W* w, const R* w0, int64_t n, Sums& out) {
  using Real = Compute<W>;
  using V = Vec<Real>;
  using I = Int<Real>;
  constexpr int kVectors = 128 / CPFAST_VECTOR_BYTES;
  constexpr int64_t kStep = kVectors * kLanes<Real>;

  while (n > 0) {
    V dd[kVectors] = {}, d0[kVectors] = {}, ww[kVectors] = {}, rr[kVectors] = {}, abs[kVectors] = {};
    I flips[kVectors] = {};
    const auto accumulate = [&](const W* w_at, const R* r_at) {
      for (int v = 0; v < kVectors; ++v) {
        const V a = load(w_at + v * kLanes<Real>);
        const V b = load(r_at + v * kLanes<Real>);
        const V d = a - b;
        dd[v] += d * d;
        d0[v] += d * b;
        ww[v] += a * a;
        rr[v] += b * b;
        if constexpr (kAll) {
          abs[v] += absolute<Real>(a);
          // A comparison gives -1 in the lanes where it holds.
          flips[v] -= ((a < 0) & (b > 0)) | ((a > 0) & (b < 0));
        }
      }
    };

    const int64_t block = std::min(n, kMaxAdditions * kStep);
    int64_t i = 0;
    for (; i + kStep <= block; i += kStep) accumulate(w + i, w0 + i);
    if (i < block) {
      // Zeros add nothing to any sum.
      W w_tail[kStep] = {};
      R r_tail[kStep] = {};
      std::copy(w + i, w + block, w_tail);
      std::copy(w0 + i, w0 + block, r_tail);
      accumulate(w_tail, r_tail);
    }
    for (int v = 0; v < kVectors; ++v) {
      out.dd += lane_sum(dd[v]);
      out.d0 += lane_sum(d0[v]);
      out.ww += lane_sum(ww[v]);
      out.rr += lane_sum(rr[v]);
      if constexpr (kAll) {
        out.abs += lane_sum(abs[v]);
        out.flips += lane_sum(flips[v]);
      }
    }
    w += block;
    w0 += block;
    n -= block;
  }
}

// Other pairs of dtypes go through buffers: each pair of its own costs a second of compilation.
template <bool kAll, typename Real>
inline void tile_sums_widened(const Layer& layer, int64_t offset, int64_t n, Sums& out) {
  constexpr int64_t kBlock = kMaxAdditions * 128 / sizeof(Real);
  Real w_wide[kBlock], r_wide[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t block = std::min(kBlock, n - at);
    widen_to(layer.dtype, layer.w, offset + at, block, w_wide);
    widen_to(layer.ref_dtype, layer.w0, offset + at, block, r_wide);
    tile_sums<kAll>(w_wide, r_wide, block, out);
  }
}

template <bool kAll>
inline void tile_sums_of(const Layer& layer, int64_t offset, int64_t n, Sums& out) {
  using enum ScalarType;
  const auto both = [&](ScalarType a, ScalarType b) {
    return layer.dtype == a && layer.ref_dtype == b;
  };
  const auto run = [&]<typename W, typename R>(W, R) {
    tile_sums<kAll>(static_cast<const W*>(layer.w) + offset,
                    static_cast<const R*>(layer.w0) + offset, n, out);
  };
  if (both(Float, Float)) run(float{}, float{});
  else if (both(BFloat16, Float)) run(c10::BFloat16{}, float{});
  else if (both(BFloat16, BFloat16)) run(c10::BFloat16{}, c10::BFloat16{});
  else if (both(Half, Float)) run(c10::Half{}, float{});
  else if (both(Double, Double)) run(double{}, double{});
  else if (layer.dtype == Double || layer.ref_dtype == Double)
    tile_sums_widened<kAll, double>(layer, offset, n, out);
  else
    tile_sums_widened<kAll, float>(layer, offset, n, out);
}

inline void sum_tiles(const Layer* layers, const int32_t* layer_of_tile, int64_t tile,
                      int64_t begin, int64_t end, bool all, Sums* partials) {
  for (int64_t t = begin; t < end; ++t) {
    const Layer& layer = layers[layer_of_tile[t]];
    const int64_t offset = (t - layer.first_tile) * tile;
    const int64_t n = std::min(tile, layer.numel - offset);
    if (all)
      tile_sums_of<true>(layer, offset, n, partials[t]);
    else
      tile_sums_of<false>(layer, offset, n, partials[t]);
  }
}
