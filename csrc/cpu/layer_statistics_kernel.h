// The sums of one range of tiles; included by foreach_isa.h.

// 32 lanes an accumulator (16 for float64) on every instruction set: the same order of additions.
inline constexpr int kVectors = 128 / CPFAST_VECTOR_BYTES;

// What one accumulator has summed over the blocks of a tile.
template <typename Real>
struct Lanes {
  using Wide = Vec<double>;
  static constexpr int kCount = kVectors * kLanes<Real>;
  static constexpr int kWides = kCount / kLanes<double>;
  Wide sums[kWides] = {};

  template <typename V>
  void add(const V (&values)[kVectors]) {
    constexpr int kParts = kWides / kVectors;
    typedef std::remove_reference_t<decltype(values[0][0])> Part
        __attribute__((vector_size(sizeof(V) / kParts)));
    for (int v = 0; v < kVectors; ++v) {
      Part parts[kParts];
      std::memcpy(parts, &values[v], sizeof(V));
      for (int i = 0; i < kParts; ++i)
        sums[v * kParts + i] += __builtin_convertvector(parts[i], Wide);
    }
  }

  // The lanes folded in halves.
  double total() {
    for (int half = kWides / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    double lanes[kLanes<double>];
    std::memcpy(lanes, &sums[0], sizeof(lanes));
    for (int half = kLanes<double> / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
  }
};

template <bool kAll, bool kRefs, typename Real>
struct TileSums {
  Real ratio;
  Lanes<Real> dd = {}, d0 = {}, ww = {}, rr = {}, abs = {}, flips = {};

  // The elements, in blocks of kMaxAdditions a lane.
  template <typename W, typename R>
  void add(const W* w, const R* w0, int64_t n) {
    using V = Vec<Real>;
    using I = Int<Real>;
    constexpr int64_t kStep = Lanes<Real>::kCount;
    const V s = in_register(splat(ratio));
    while (n > 0) {
      V dd_[kVectors] = {}, d0_[kVectors] = {}, ww_[kVectors] = {}, rr_[kVectors] = {};
      V abs_[kVectors] = {};
      I flips_[kVectors] = {};
      const auto accumulate = [&](const W* w_at, const R* r_at,
                                  const auto& difference) __attribute__((always_inline)) {
        for (int v = 0; v < kVectors; ++v) {
          const V a = in_register(load(w_at + v * kLanes<Real>));
          const V b = in_register(load(r_at + v * kLanes<Real>));
          const V d = difference(a, b);
          dd_[v] += d * d;
          d0_[v] += d * b;
          ww_[v] += a * a;
          if constexpr (kRefs) rr_[v] += b * b;
          if constexpr (kAll) {
            const V magnitude = absolute<Real>(a);
            abs_[v] += magnitude;
            // A comparison gives -1 in the lanes where it holds. NaN is not greater than 0.
            flips_[v] -= (((I)a ^ (I)b) < 0) & (magnitude > 0) & (absolute<Real>(b) > 0);
          }
        }
      };

      const int64_t block = std::min(n, kMaxAdditions * kStep);
      int64_t i = 0;
      const auto accumulate_steps = [&](const auto& difference) __attribute__((always_inline)) {
        for (; i + kStep <= block; i += kStep) accumulate(w + i, w0 + i, difference);
      };
      const auto scaled = [s](V a, V b) { return a - s * b; };
      // Equal to the bit where s is 1, but not bound by the units for products: up to 20 % faster.
      if (ratio == 1)
        accumulate_steps([](V a, V b) { return a - b; });
      else
        accumulate_steps(scaled);
      if (i < block) {
        // Zeros add nothing to any sum.
        W w_tail[kStep] = {};
        R r_tail[kStep] = {};
        std::copy(w + i, w + block, w_tail);
        std::copy(w0 + i, w0 + block, r_tail);
        accumulate(w_tail, r_tail, scaled);
      }
      dd.add(dd_);
      d0.add(d0_);
      ww.add(ww_);
      if constexpr (kRefs) rr.add(rr_);
      if constexpr (kAll) {
        abs.add(abs_);
        flips.add(flips_);
      }
      w += block;
      w0 += block;
      n -= block;
    }
  }

  void finish(Sums& out) {
    out.dd = dd.total();
    out.d0 = d0.total();
    out.ww = ww.total();
    if constexpr (kRefs) out.rr = rr.total();
    if constexpr (kAll) {
      out.abs = abs.total();
      out.flips = flips.total();
    }
  }
};

// Other pairs of dtypes go through buffers: each pair of its own costs a second of compilation.
template <bool kAll, bool kRefs, typename Real>
inline void widened_tile_sums(const Layer& layer, double ratio, int64_t offset, int64_t n,
                              Sums& out) {
  constexpr int64_t kBlock = kMaxAdditions * Lanes<Real>::kCount;
  Real w_wide[kBlock], r_wide[kBlock];
  TileSums<kAll, kRefs, Real> sums{static_cast<Real>(ratio)};
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t block = std::min(kBlock, n - at);
    widen_to(layer.dtype, layer.w, offset + at, block, w_wide);
    widen_to(layer.ref_dtype, layer.w0, offset + at, block, r_wide);
    sums.add(w_wide, r_wide, block);
  }
  sums.finish(out);
}

template <bool kAll, bool kRefs>
inline void tile_sums(const Layer& layer, const Pass& pass, int64_t offset, int64_t n, Sums& out) {
  using enum ScalarType;
  const auto both = [&](ScalarType a, ScalarType b) {
    return layer.dtype == a && layer.ref_dtype == b;
  };
  const auto run = [&]<typename W, typename R>(W, R) {
    TileSums<kAll, kRefs, Compute<W>> sums{static_cast<Compute<W>>(pass.ratio)};
    sums.add(static_cast<const W*>(layer.w) + offset, static_cast<const R*>(layer.w0) + offset, n);
    sums.finish(out);
  };
  if (pass.in_float64)
    widened_tile_sums<kAll, kRefs, double>(layer, pass.ratio, offset, n, out);
  else if (both(Float, Float))
    run(float{}, float{});
  else if (both(Float, BFloat16))
    run(float{}, c10::BFloat16{});
  else if (both(BFloat16, Float))
    run(c10::BFloat16{}, float{});
  else if (both(BFloat16, BFloat16))
    run(c10::BFloat16{}, c10::BFloat16{});
  else if (both(Half, Float))
    run(c10::Half{}, float{});
  else if (both(Double, Double))
    run(double{}, double{});
  else if (layer.is_float64())
    widened_tile_sums<kAll, kRefs, double>(layer, pass.ratio, offset, n, out);
  else
    widened_tile_sums<kAll, kRefs, float>(layer, pass.ratio, offset, n, out);
}

// The tiles of the layers that are due whose first element is among [begin, end) of all elements.
template <bool kAll, bool kRefs>
inline void sum_tiles_between(const Layers& layers, const Turn* turns, int64_t begin, int64_t end,
                              Sums* partials) {
  const Layer* layer =
      std::partition_point(layers.at, layers.at + layers.count,
                           [&](const Layer& l) { return l.first_element + l.numel <= begin; });
  for (; layer != layers.at + layers.count && layer->first_element < end; ++layer) {
    const Turn& turn = turns[layer - layers.at];
    if (!turn.is_due) continue;
    int64_t t = std::max<int64_t>(begin - layer->first_element + layers.tile - 1, 0) / layers.tile;
    for (; t * layers.tile < std::min(layer->numel, end - layer->first_element); ++t)
      tile_sums<kAll, kRefs>(*layer, turn.pass, t * layers.tile,
                             std::min(layers.tile, layer->numel - t * layers.tile),
                             partials[layer->first_tile + t]);
  }
}

inline void sum_tiles(const Layers& layers, const Turn* turns, int64_t begin, int64_t end, bool all,
                      bool refs, Sums* partials) {
  const auto run = all ? refs ? sum_tiles_between<true, true> : sum_tiles_between<true, false>
      : refs ? sum_tiles_between<false, true>
                       : sum_tiles_between<false, false>;
  run(layers, turns, begin, end, partials);
}
