// Rows of scored_cross_entropy, forward and backward; included by foreach_isa.h.

// Up to this many classes the lanes hold rows; above, they hold the classes of one row.
inline constexpr int64_t kFewClasses = 64;

template <typename R>
inline R halved_max(Vec<R> values) {
  R largest[kLanes<R>];
  std::memcpy(largest, &values, sizeof(values));
  for (int half = kLanes<R> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      largest[i] = largest[i] > largest[i + half] ? largest[i] : largest[i + half];
  return largest[0];
}

// Passes the whole vectors of a row to plain(begin, end), and to masked(at, counts) those of which
// some lanes do not count: that of class y, and the last one, which ends with the row and so
// overlaps the one before it.
template <typename R, typename Plain, typename Masked>
inline void for_vectors(int64_t classes, int64_t y, const Plain& plain, const Masked& masked) {
  constexpr int64_t kStep = kLanes<R>;
  const Int<R> lane = lane_numbers<R>();
  const int64_t full = classes / kStep * kStep, own = std::min(y / kStep * kStep, full);
  plain(0, own);
  if (own < full) {
    masked(own, lane != static_cast<int>(y - own));
    plain(own + kStep, full);
  }
  if (full < classes) {
    const int64_t at = classes - kStep;
    const int own_lane = y >= at ? static_cast<int>(y - at) : -1;
    masked(at, (lane >= static_cast<int>(full - at)) & (lane != own_lane));
  }
}

// What the passes over some rows leave, a lane a row.
template <typename R>
struct Sums {
  alignas(64) R x_y[kLanes<R>], others[kLanes<R>];  // the target's logit, the largest other
  R s1[kLanes<R>], s2[kLanes<R>], total[kLanes<R>];
  int tie[kLanes<R>];  // does a logit before the target equal it?
};

// Writes all but the gradients of `rows` rows from `first` on; returns gap = exp(others - max) and
// z, the sum of all exponentials, both relative to the largest logit.
template <typename T>
inline void finish(const Rows<T>& f, int64_t first, int rows, const Sums<Compute<T>>& sums,
                   Vec<Compute<T>>& gap, Vec<Compute<T>>& z) {
  using R = Compute<T>;
  using V = Vec<R>;
  const V x_y = load(sums.x_y), others = load(sums.others), s1 = load(sums.s1);
  const V max = maximum<R>(others, x_y);
  const V e_y = exp_nonpositive(x_y - max);
  gap = exp_nonpositive(others - max);
  z = s1 * gap + e_y;
  // Where the target is not the largest, gap and one term of s1 are 1.
  const Int<R> largest = x_y >= max;
  const V u = largest ? s1 * gap / e_y : (s1 - 1) + e_y;
  const V nll = (largest ? V{} : max - x_y) + log1p_nonnegative<R>(u < 0 ? V{} : u);
  V value = nll;
  if (f.smoothing > 0) {
    // The mean of lse - x_j, by differences. A masked target has an infinite loss.
    const V smooth = nll - load(sums.total) / R(f.classes) / R(kShare);
    value = R(1 - f.smoothing) * nll +
        R(f.smoothing) * (nll == std::numeric_limits<R>::infinity() ? nll : smooth);
  }
  const V p = s1 * gap / z;
  // sqrt(s2 + s1^2) with s1 taken out, so that s2 of a confident row does not underflow.
  const V ratio = s1 > 0 ? 1 + load(sums.s2) / (s1 * s1) : V{} + 1;
  const V margin = nll != nll ? nll : x_y - others;
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    const bool counts = f.target[row] != f.ignore_index;
    const bool correct = nll[r] == nll[r] && x_y[r] >= others[r] && !sums.tie[r];
    const float scores[4] = {static_cast<float>(value[r]),
                             static_cast<float>(p[r] * std::sqrt(ratio[r])),
                             static_cast<float>(margin[r]), static_cast<float>(correct)};
    f.loss[row] = counts ? (f.weight ? f.weight[row] * value[r] : value[r]) : R(0);
    for (int s = 1; s < 4; ++s) f.scores[(s - 1) * f.count + row] = counts ? scores[s] : 0.0f;
    if (f.recorded) f.recorded[row] = counts ? scores[static_cast<int>(f.score)] : 0.0f;
    if (f.stats) {
      f.stats[2 * row] = counts ? max[r] : R(0);
      f.stats[2 * row + 1] = counts ? s1[r] * gap[r] : R(1);
    }
  }
}

template <typename T>
inline Real<T> row_weight(const Rows<T>& f, int64_t row, Real<T> scale) {
  return f.weight ? f.weight[row] * scale : scale;
}

// p_y - 1 is -s1 / Z, which keeps its digits; g is the row's gradient, others is g s1 / Z.
template <typename R>
inline R at_target(double smoothing, int64_t classes, R g, R others) {
  return static_cast<R>(g * (smoothing - smoothing / classes) - others);
}

// Many classes: row by row. The largest of the other logits, and the target's.
template <typename T>
inline void find_largest(const Rows<T>& f, int64_t row, int r, Sums<Compute<T>>& sums) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr R kLowest = -std::numeric_limits<R>::infinity();
  constexpr int64_t kStep = kLanes<R>;
  const int64_t y = f.target[row];
  if (y == f.ignore_index) return;
  const T* x = f.input + f.at(row);
  const R x_y = x[y];

  V largest[4] = {splat(kLowest), splat(kLowest), splat(kLowest), splat(kLowest)};
  for_vectors<R>(
      f.classes, y,
      [&](int64_t begin, int64_t end) {
        int64_t i = begin;
        for (; i + 4 * kStep <= end; i += 4 * kStep)
          for (int v = 0; v < 4; ++v) largest[v] = maximum<R>(load(x + i + v * kStep), largest[v]);
        for (; i < end; i += kStep) largest[0] = maximum<R>(load(x + i), largest[0]);
      },
      [&](int64_t at, Int<R> counts) {
        largest[1] = maximum<R>(counts ? load(x + at) : splat(kLowest), largest[1]);
      });
  const R others = halved_max<R>(
      maximum<R>(maximum<R>(largest[0], largest[1]), maximum<R>(largest[2], largest[3])));
  bool tie = false;
  if (x_y == others)
    for (int64_t j = 0; j < y && !tie; ++j) tie = static_cast<R>(x[j]) == x_y;

  sums.x_y[r] = x_y;
  sums.others[r] = others;
  sums.tie[r] = tie;
}

// The sums of a row, and, if it wants a gradient, its exponentials in a buffer where they wait for
// them.
template <bool kGrad, typename T>
inline void sum_row(const Rows<T>& f, int64_t row, Compute<T>* exponentials, int r,
                    Sums<Compute<T>>& sums) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr R kLowest = -std::numeric_limits<R>::infinity();
  constexpr int64_t kStep = kLanes<R>;
  const int64_t y = f.target[row], classes = f.classes;
  const T* x = f.input + f.at(row);
  const R others = sums.others[r];
  // Where all others are masked, subtracting -inf would make NaN of them.
  const V shift = splat(others == kLowest ? R(0) : others), target = splat(sums.x_y[r] * R(kShare));
  double s1 = 0, s2 = 0, total = 0;
  const auto sum = [&]<bool kTotal>(std::bool_constant<kTotal>) {
    V e1[2] = {}, e2[2] = {}, t[2] = {};
    const auto flush = [&] {
      s1 += halved_sum<R>(e1[0] + e1[1]);
      s2 += halved_sum<R>(e2[0] + e2[1]);
      if constexpr (kTotal) total += halved_sum<R>(t[0] + t[1]);
      for (V* v : {e1, e2, t}) v[0] = v[1] = V{};
    };
    const auto add = [&](int v, int64_t i) {
      const V value = load(x + i);
      const V e = exp_nonpositive<Digits::kOfTerms>(value - shift);
      if constexpr (kGrad) store(exponentials + i, e);
      e1[v] += e;
      e2[v] += e * e;
      if constexpr (kTotal) t[v] += value * R(kShare) - target;
    };
    for_vectors<R>(
        classes, y,
        [&](int64_t begin, int64_t end) {
          // Both calls and the masked vectors together add 128 numbers at most to a lane, before
          // it goes on in float64.
          constexpr int64_t kBlock = 2 * 62 * kStep;
          for (int64_t i = begin; i < end;) {
            const int64_t stop = std::min(end, i + kBlock);
            for (; i + 2 * kStep <= stop; i += 2 * kStep) {
              add(0, i);
              add(1, i + kStep);
            }
            if (i < stop) {
              add(0, i);
              i += kStep;
            }
            if (stop - begin >= kBlock) flush();
          }
        },
        [&](int64_t at, Int<R> counts) {
          const V value = load(x + at);
          const V e = exp_nonpositive<Digits::kOfTerms>(value - shift), other = counts ? e : V{};
          if constexpr (kGrad) store(exponentials + at, e);
          e1[1] += other;
          e2[1] += other * other;
          if constexpr (kTotal) t[1] += counts ? value * R(kShare) - target : V{};
        });
    flush();
  };
  if (f.smoothing > 0)
    sum(std::true_type{});
  else
    sum(std::false_type{});
  sums.s1[r] = static_cast<R>(s1);
  sums.s2[r] = static_cast<R>(s2);
  sums.total[r] = static_cast<R>(total);
}

// From the exponentials of the other logits, relative to the largest of them.
template <typename T>
inline void gradient_of_row(const Rows<T>& f, int64_t row, const Compute<T>* e, Compute<T> g,
                            const Sums<Compute<T>>& sums, int r) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr int64_t kStep = kLanes<R>;
  T* grad = f.grad + f.grad_at(row);
  const R max = sums.others[r] > sums.x_y[r] ? sums.others[r] : sums.x_y[r];
  V exponents = {};
  exponents[0] = sums.others[r] - max;
  exponents[1] = sums.x_y[r] - max;
  const V two = exp_nonpositive(exponents);
  const R s1 = sums.s1[r] * two[0], z = s1 + two[1];
  const V factor = splat(g * two[0] / z),
          smooth = splat(static_cast<R>(g * (f.smoothing / f.classes)));
  const auto write = [&](int64_t c) { store(grad + c, load(e + c) * factor - smooth); };
  // The first and the last vector overlap others, so that those between lie within cache lines:
  // stores across them took a third of the time of 1,000 classes.
  constexpr int64_t kBytes = kStep * sizeof(T);
  write(0);
  const int64_t past = reinterpret_cast<uintptr_t>(grad) % kBytes;
  for (int64_t c = (kBytes - past) / sizeof(T); c + kStep <= f.classes; c += kStep) write(c);
  write(f.classes - kStep);
  grad[f.target[row]] = static_cast<T>(at_target(f.smoothing, f.classes, g, s1 * (g / z)));
}

template <typename T>
inline void forward_many(const Rows<T>& f, int64_t begin, int64_t end, Compute<T> scale) {
  using R = Compute<T>;
  constexpr int kRows = kLanes<R>;
  // Two rows of exponentials, aligned to vectors.
  const int64_t size = (f.classes + kRows - 1) / kRows * kRows;
  std::vector<R> buffer(f.grad ? 2 * size + kRows : 0);
  const int64_t past = reinterpret_cast<uintptr_t>(buffer.data()) % CPFAST_VECTOR_BYTES;
  R* const aligned = buffer.data() + (CPFAST_VECTOR_BYTES - past) / sizeof(R) % kRows;

  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    Sums<R> sums = {};
    const auto write_gradient = [&](int r) {
      const int64_t row = first + r;
      if (f.target[row] == f.ignore_index)
        std::fill_n(f.grad + f.grad_at(row), f.classes, T(0));
      else
        gradient_of_row(f, row, aligned + r % 2 * size, row_weight(f, row, scale), sums, r);
    };
    // The passes over neighbouring rows take turns, so that none waits for the sum over lanes that
    // the one before it ends with.
    find_largest(f, first, 0, sums);
    for (int r = 0; r < rows; ++r) {
      if (r + 1 < rows) find_largest(f, first + r + 1, r + 1, sums);
      if (f.target[first + r] != f.ignore_index) {
        if (f.grad)
          sum_row<true>(f, first + r, aligned + r % 2 * size, r, sums);
        else
          sum_row<false>(f, first + r, static_cast<R*>(nullptr), r, sums);
      }
      if (f.grad && r > 0) write_gradient(r - 1);
    }
    if (f.grad) write_gradient(rows - 1);
    Vec<R> gap, z;
    finish(f, first, rows, sums, gap, z);
  }
}

// Copies the logits of some rows, a row a lane; lanes past the last row repeat it.
template <typename T>
inline void transpose(const Rows<T>& f, int64_t first, int rows,
                      Compute<T> (&logits)[kFewClasses][kLanes<Compute<T>>]) {
  for (int r = 0; r < kLanes<Compute<T>>; ++r) {
    const T* x = f.input + f.at(first + std::min(r, rows - 1));
    for (int64_t c = 0; c < f.classes; ++c) logits[c][r] = x[c];
  }
}

template <typename T>
inline void forward_few(const Rows<T>& f, int64_t begin, int64_t end, Compute<T> scale) {
  using R = Compute<T>;
  using V = Vec<R>;
  using I = Int<R>;
  constexpr int kRows = kLanes<R>;
  constexpr R kLowest = -std::numeric_limits<R>::infinity();
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    alignas(64) R logits[kFewClasses][kRows];
    transpose(f, first, rows, logits);
    I y = {};
    for (int r = 0; r < kRows; ++r) {
      const int64_t target = f.target[first + std::min(r, rows - 1)];
      // An ignored row needs some valid target while the lanes march together.
      y[r] = target == f.ignore_index ? 0 : static_cast<int>(target);
    }
    V before = splat(kLowest), after = splat(kLowest), x_y = {}, total = {};
    for (int c = 0; c < f.classes; ++c) {
      const V x = load(logits[c]);
      before = (y > c) & (x > before) ? x : before;
      after = (y < c) & (x > after) ? x : after;
      x_y = y == c ? x : x_y;
    }
    const V others = maximum<R>(before, after);
    const V shift = others == kLowest ? V{} : others;
    V s1 = {}, s2 = {};
    for (int c = 0; c < f.classes; ++c) {
      const V x = load(logits[c]), e = exp_nonpositive<Digits::kOfTerms>(x - shift);
      const V other = y == c ? V{} : e;
      s1 += other;
      s2 += other * other;
      total += x * R(kShare) - x_y * R(kShare);
      if (f.grad) store(logits[c], e);
    }
    Sums<R> sums;
    store(sums.x_y, x_y);
    store(sums.others, others);
    store(sums.s1, s1);
    store(sums.s2, s2);
    store(sums.total, total);
    const I tie = before == x_y;
    for (int r = 0; r < kRows; ++r) sums.tie[r] = tie[r] != 0;
    V gap, z;
    finish(f, first, rows, sums, gap, z);
    if (f.grad == nullptr) continue;

    V g = {};
    for (int r = 0; r < rows; ++r)
      if (f.target[first + r] != f.ignore_index) g[r] = row_weight(f, first + r, scale);
    const V factor = g * gap / z, smooth = g * R(f.smoothing / f.classes);
    const V own = g * R(f.smoothing - f.smoothing / f.classes) - s1 * gap * (g / z);
    for (int c = 0; c < f.classes; ++c)
      store(logits[c], y == c ? own : load(logits[c]) * factor - smooth);
    for (int r = 0; r < rows; ++r) {
      T* grad = f.grad + f.grad_at(first + r);
      // Not by g = 0, which would leave the NaN of an ignored row.
      const bool counts = f.target[first + r] != f.ignore_index;
      for (int64_t c = 0; c < f.classes; ++c)
        grad[c] = counts ? static_cast<T>(logits[c][r]) : T(0);
    }
  }
}

template <typename T>
inline void forward_rows(const Rows<T>& f, int64_t begin, int64_t end, Compute<T> scale) {
  if (f.classes <= kFewClasses)
    forward_few(f, begin, end, scale);
  else
    forward_many(f, begin, end, scale);
}

template <typename T>
inline void backward_row(const Backward<T>& b, int64_t row) {
  using R = Compute<T>;
  const Rows<T>& f = b.rows;
  T* grad = f.grad + f.grad_at(row);
  const int64_t y = f.target[row];
  if (y == f.ignore_index) {
    std::fill_n(grad, f.classes, T(0));
    return;
  }
  const T* x = f.input + f.at(row);
  const R max = f.stats[2 * row], s1 = f.stats[2 * row + 1];
  const R g = row_weight(f, row, b.upstream(row));
  const R per_sum = g / (s1 + std::exp(static_cast<R>(x[y]) - max));
  const R smooth = static_cast<R>(g * (f.smoothing / f.classes));
  const auto write = [&](int64_t c) {
    store(grad + c, exp_nonpositive<Digits::kOfTerms>(load(x + c) - max) * per_sum - smooth);
  };
  for (int64_t c = 0; c + kLanes<R> <= f.classes; c += kLanes<R>) write(c);
  write(f.classes - kLanes<R>);
  grad[y] = static_cast<T>(at_target(f.smoothing, f.classes, g, s1 * per_sum));
}

template <typename T>
inline void backward_few(const Backward<T>& b, int64_t begin, int64_t end) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr int kRows = kLanes<R>;
  const Rows<T>& f = b.rows;
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    alignas(64) R logits[kFewClasses][kRows];
    transpose(f, first, rows, logits);
    R max[kRows], x_y[kRows], s1[kRows], g[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + std::min(r, rows - 1), y = f.target[row];
      max[r] = f.stats[2 * row];
      s1[r] = f.stats[2 * row + 1];
      x_y[r] = y == f.ignore_index ? max[r] : logits[y][r];
      g[r] = row_weight(f, row, b.upstream(row));
    }
    const V z = load(s1) + exp_nonpositive(load(x_y) - load(max));
    const V per_sum = load(g) / z;
    const V smooth = load(g) * R(f.smoothing / f.classes);
    const V own = load(s1) * per_sum;
    for (int64_t c = 0; c < f.classes; ++c)
      store(logits[c],
            exp_nonpositive<Digits::kOfTerms>(load(logits[c]) - load(max)) * per_sum - smooth);
    for (int r = 0; r < rows; ++r) {
      const int64_t y = f.target[first + r];
      T* grad = f.grad + f.grad_at(first + r);
      if (y == f.ignore_index) {
        std::fill_n(grad, f.classes, T(0));
        continue;
      }
      for (int64_t c = 0; c < f.classes; ++c) grad[c] = static_cast<T>(logits[c][r]);
      grad[y] = static_cast<T>(at_target<R>(f.smoothing, f.classes, g[r], own[r]));
    }
  }
}

template <typename T>
inline void backward_rows(const Backward<T>& b, int64_t begin, int64_t end) {
  if (b.rows.classes <= kFewClasses) return backward_few(b, begin, end);
  for (int64_t row = begin; row < end; ++row) backward_row(b, row);
}

template <typename T>
inline void rescale_row(T* grad, int64_t classes, Compute<T> factor) {
  using R = Compute<T>;
  int64_t c = 0;
  for (; c + kLanes<R> <= classes; c += kLanes<R>) store(grad + c, load(grad + c) * factor);
  for (; c < classes; ++c) grad[c] = static_cast<T>(static_cast<R>(grad[c]) * factor);
}
