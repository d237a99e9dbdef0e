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

// Writes all but the gradients of `rows` rows from `first` on; returns gap = exp(others - max), z,
// the sum of all exponentials, both relative to the largest logit, and lse where there is a z_loss.
template <typename T>
inline void finish(const Rows<T>& f, int64_t first, int rows, const Sums<Compute<T>>& sums,
                   Vec<Compute<T>>& gap, Vec<Compute<T>>& z, Vec<Compute<T>>& lse) {
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
  lse = f.z_loss > 0 ? max + log1p_nonnegative<R>(z > 1 ? z - 1 : V{}) : V{};
  const V p = s1 * gap / z;
  // sqrt(s2 + s1^2) with s1 taken out, so that s2 of a confident row does not underflow.
  const V ratio = s1 > 0 ? 1 + load(sums.s2) / (s1 * s1) : V{} + 1;
  const V margin = nll != nll ? nll : x_y - others;
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    const bool counts = f.target[row] != f.ignore_index;
    const bool correct = nll[r] == nll[r] && x_y[r] >= others[r] && !sums.tie[r];
    const R plain = counts ? f.weight_of_class(row) * value[r] : R(0);
    const R total = plain + static_cast<R>(f.z_loss) * lse[r] * lse[r];
    const float scores[4] = {static_cast<float>(plain),
                             static_cast<float>(p[r] * std::sqrt(ratio[r])),
                             static_cast<float>(margin[r]), static_cast<float>(correct)};
    f.loss[row] = counts ? (f.is_weighted() ? f.weight_of_row(row) * total : total) : R(0);
    for (int s = 1; s < 4; ++s) f.scores[(s - 1) * f.count + row] = counts ? scores[s] : 0.0f;
    if (f.recorded) f.recorded[row] = counts ? scores[static_cast<int>(f.score)] : 0.0f;
    if (f.stats) {
      f.stats[2 * row] = counts ? max[r] : R(0);
      f.stats[2 * row + 1] = counts ? s1[r] * gap[r] : R(1);
    }
  }
}

// What gradients of z_loss multiply p by; `weight` is the row's, with what comes from above.
template <typename T>
inline Real<T> of_z_loss(const Rows<T>& f, Real<T> weight, Real<T> lse) {
  return f.z_loss > 0 ? static_cast<Real<T>>(2 * f.z_loss) * weight * lse : Real<T>(0);
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

// From the exponentials of the other logits, relative to the largest of them. `weight` is the
// row's, with what comes from above.
template <typename T>
inline void gradient_of_row(const Rows<T>& f, int64_t row, const Compute<T>* e, Compute<T> weight,
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
  const R g = weight * f.weight_of_class(row), g_z = of_z_loss(f, weight, max + std::log(z));
  const V factor = splat((g + g_z) * two[0] / z),
          smooth = splat(static_cast<R>(g * (f.smoothing / f.classes)));
  const auto write = [&](int64_t c) { store(grad + c, load(e + c) * factor - smooth); };
  // The first and the last vector overlap others, so that those between lie within cache lines:
  // stores across them took a third of the time of 1,000 classes.
  constexpr int64_t kBytes = kStep * sizeof(T);
  write(0);
  const int64_t past = reinterpret_cast<uintptr_t>(grad) % kBytes;
  for (int64_t c = (kBytes - past) / sizeof(T); c + kStep <= f.classes; c += kStep) write(c);
  write(f.classes - kStep);
  grad[f.target[row]] =
      static_cast<T>(at_target(f.smoothing, f.classes, g, s1 * (g / z)) + g_z * (two[1] / z));
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
        gradient_of_row(f, row, aligned + r % 2 * size, f.weight_of_row(row) * scale, sums, r);
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
    Vec<R> gap, z, lse;
    finish(f, first, rows, sums, gap, z, lse);
  }
}

// Do the logits of a class fill a vector, row after row?
template <typename T>
inline bool lie_side_by_side(const Layout& at, int64_t first, int rows) {
  constexpr int kRows = kLanes<Compute<T>>;
  return rows == kRows && at.class_stride != 1 && at(first + kRows - 1) == at(first) + kRows - 1;
}

// The logits of some rows, a row a lane, those of a class after those of the one before.
template <typename R>
using Tile = R (*)[kLanes<R>];

// Copies them; lanes past the last row repeat it.
template <typename T>
inline void transpose(const Rows<T>& f, int64_t first, int rows, Tile<Compute<T>> logits) {
  const int64_t stride = f.at.class_stride;
  if (lie_side_by_side<T>(f.at, first, rows)) {
    const T* x = f.input + f.at(first);
    for (int64_t c = 0; c < f.classes; ++c) store(logits[c], load(x + c * stride));
    return;
  }
  for (int r = 0; r < kLanes<Compute<T>>; ++r) {
    const T* x = f.input + f.at(first + std::min(r, rows - 1));
    for (int64_t c = 0; c < f.classes; ++c) logits[c][r] = x[c * stride];
  }
}

// Writes a tile of gradients, where the row is not ignored.
template <typename T>
inline void transpose_back(const Rows<T>& f, int64_t first, int rows, Tile<Compute<T>> gradients) {
  const int64_t stride = f.grad_at.class_stride;
  bool counts[kLanes<Compute<T>>], all = true;
  // Not by g = 0, which would leave the NaN of an ignored row.
  for (int r = 0; r < rows; ++r) all &= counts[r] = !f.ignores(first + r);
  if (all && lie_side_by_side<T>(f.grad_at, first, rows)) {
    T* grad = f.grad + f.grad_at(first);
    for (int64_t c = 0; c < f.classes; ++c) store(grad + c * stride, load(gradients[c]));
    return;
  }
  for (int r = 0; r < rows; ++r) {
    T* grad = f.grad + f.grad_at(first + r);
    for (int64_t c = 0; c < f.classes; ++c)
      grad[c * stride] = counts[r] ? static_cast<T>(gradients[c][r]) : T(0);
  }
}

template <typename T>
inline void forward_tiles(const Rows<T>& f, int64_t begin, int64_t end, Compute<T> scale,
                          Tile<Compute<T>> logits) {
  using R = Compute<T>;
  using V = Vec<R>;
  using I = Int<R>;
  constexpr int kRows = kLanes<R>;
  constexpr R kLowest = -std::numeric_limits<R>::infinity();
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
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
    V gap, z, lse;
    finish(f, first, rows, sums, gap, z, lse);
    if (f.grad == nullptr) continue;

    V g = {}, g_z = {};
    for (int r = 0; r < rows; ++r) {
      const int64_t row = first + r;
      if (f.ignores(row)) continue;
      const R weight = f.weight_of_row(row) * scale;
      g[r] = weight * f.weight_of_class(row);
      g_z[r] = of_z_loss(f, weight, lse[r]);
    }
    const V factor = (g + g_z) * gap / z, smooth = g * R(f.smoothing / f.classes);
    V own = g * R(f.smoothing - f.smoothing / f.classes) - s1 * gap * (g / z);
    if (f.z_loss > 0) own += g_z * exp_nonpositive(x_y - maximum<R>(others, x_y)) / z;
    for (int c = 0; c < f.classes; ++c)
      store(logits[c], y == c ? own : load(logits[c]) * factor - smooth);
    transpose_back(f, first, rows, logits);
  }
}

// A row's numbers where each class has a share of the target: the whole vectors of its logits, and
// of its shares, past the last class filled up with what adds nothing.
template <typename R>
struct SoftBuffers {
  int64_t classes, size;
  std::vector<R> memory;
  R *logits, *target, *class_weight;

  template <typename T>
  explicit SoftBuffers(const Rows<T>& f)
      : classes(f.classes),
        size((f.classes + kLanes<R> - 1) / kLanes<R> * kLanes<R>),
        memory(3 * size),
        logits(memory.data()),
        target(logits + size),
        class_weight(target + size) {
    for (int64_t c = 0; c < classes; ++c) class_weight[c] = f.class_weight ? f.class_weight[c] : 1;
  }

  template <typename T>
  void load_row(const Rows<T>& f, int64_t row) {
    const T* x = f.input + f.at(row);
    std::fill(logits + classes - classes % kLanes<R>, logits + size,
              -std::numeric_limits<R>::infinity());
    std::copy_n(x, classes, logits);
    if (f.distributions) {
      std::copy_n(f.distributions + row * classes, classes, target);
    } else {
      std::fill_n(target, classes, R(0));
      target[f.target[row]] = 1;
    }
  }
};

// The largest of the first n numbers, and where it first stands. NaN is passed over.
template <typename R>
inline int64_t first_largest(const R* values, int64_t n) {
  constexpr int kStep = kLanes<R>;
  Vec<R> largest = splat(-std::numeric_limits<R>::infinity());
  Int<R> at = {};
  const Int<R> lane = lane_numbers<R>();
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    const Vec<R> x = load(values + i);
    const Int<R> larger = x > largest;
    largest = larger ? x : largest;
    at = larger ? lane + static_cast<SignedInt<R>>(i) : at;
  }
  R best = -std::numeric_limits<R>::infinity();
  int64_t found = 0;
  for (int k = 0; k < kStep; ++k)
    if (largest[k] > best || (largest[k] == best && at[k] < found)) {
      best = largest[k];
      found = at[k];
    }
  for (; i < n; ++i)
    if (values[i] > best) {
      best = values[i];
      found = i;
    }
  return found;
}

// What the target asks of a class: its share, smoothed and weighted.
template <typename R>
struct Share {
  R kept, smooth;

  template <typename T>
  explicit Share(const Rows<T>& f)
      : kept(static_cast<R>(1 - f.smoothing)), smooth(static_cast<R>(f.smoothing / f.classes)) {}

  template <typename V>
  V operator()(V target, V class_weight) const {
    return class_weight * (kept * target + smooth);
  }
};

// Adds run(at) over the vectors of a row: in float64, after 128 numbers a lane.
template <typename R, int kSums, typename Run>
inline void add_vectors(int64_t size, double (&sums)[kSums], const Run& run) {
  for (int64_t begin = 0; begin < size; begin += 128 * kLanes<R>) {
    Vec<R> parts[kSums] = {};
    const int64_t end = std::min(size, begin + 128 * kLanes<R>);
    for (int64_t at = begin; at < end; at += kLanes<R>) run(at, parts);
    for (int k = 0; k < kSums; ++k) sums[k] += halved_sum<R>(parts[k]);
  }
}

// Writes the gradient of a row: (g total + g_z) p - g t, p being e / z, and at the largest logit
// 1 - s / z where that is more than a half: less has more digits as 1 / z. Leaves nothing of use in
// the buffers.
template <typename T>
inline void soft_gradient(const Rows<T>& f, int64_t row, SoftBuffers<Compute<T>>& b, int64_t best,
                          Compute<T> best_share, Compute<T> total, Compute<T> s, Compute<T> lse,
                          Compute<T> weight) {
  using R = Compute<T>;
  const Share<R> share(f);
  const R z = 1 + s, g_z = of_z_loss(f, weight, lse);
  const R factor = (weight * total + g_z) / z;
  T* grad = f.grad + f.grad_at(row);
  for (int64_t c = 0; c < b.size; c += kLanes<R>) {
    const Vec<R> t = share(load(b.target + c), load(b.class_weight + c));
    store(b.logits + c, load(b.logits + c) * factor - weight * t);
  }
  for (int64_t c = 0; c < f.classes; ++c) grad[c] = static_cast<T>(b.logits[c]);
  grad[best] = static_cast<T>(z > 2 ? factor - weight * best_share
                                    : weight * ((total - best_share) - total * (s / z)) + g_z / z);
}

// Leaves exp(x - max) in place of the logits, 0 at the largest; returns their sum, that of the
// shares but the largest logit's, and their parts of the loss.
template <typename R>
struct SoftSums {
  double s, shares, loss;
};

template <typename R, typename T>
inline SoftSums<R> soft_sums(const Rows<T>& f, SoftBuffers<R>& b, int64_t best, R max) {
  using V = Vec<R>;
  const Share<R> share(f);
  const R best_target = b.target[best], best_weight = b.class_weight[best];
  b.logits[best] = -std::numeric_limits<R>::infinity();
  b.class_weight[best] = 0;  // so that it has no share
  double sums[3] = {};
  add_vectors<R>(b.size, sums, [&](int64_t at, V(&parts)[3]) {
    const V x = load(b.logits + at) - max;
    const V t = share(load(b.target + at), load(b.class_weight + at));
    const V e = exp_nonpositive(x);
    store(b.logits + at, e);
    parts[0] += e;
    parts[1] += t;
    parts[2] += t != 0 ? -t * x : V{};  // of a masked logit without a share nothing
  });
  b.target[best] = best_target;
  b.class_weight[best] = best_weight;
  return {sums[0] + (max - max), sums[1], sums[2]};  // NaN where the largest is infinite
}

template <typename T>
inline void forward_soft(const Rows<T>& f, int64_t begin, int64_t end, Compute<T> scale) {
  using R = Compute<T>;
  using V = Vec<R>;
  SoftBuffers<R> b(f);
  const Share<R> share(f);
  for (int64_t row = begin; row < end; ++row) {
    if (f.ignores(row)) {
      f.loss[row] = 0;
      for (int k = 0; k < 3; ++k) f.scores[k * f.count + row] = 0;
      if (f.recorded) f.recorded[row] = 0;
      if (f.stats) f.stats[2 * row] = f.stats[2 * row + 1] = 0;
      if (f.grad) std::fill_n(f.grad + f.grad_at(row), f.classes, T(0));
      continue;
    }
    b.load_row(f, row);
    const int64_t best = first_largest(b.logits, f.classes);
    const int64_t y = f.target ? f.target[row] : first_largest(b.target, f.classes);
    const R max = b.logits[best], x_y = b.logits[y];
    b.logits[best] = -std::numeric_limits<R>::infinity();
    const R second = b.logits[first_largest(b.logits, f.classes)];
    const SoftSums<R> sums = soft_sums(f, b, best, max);
    const R s = static_cast<R>(sums.s), z = 1 + s;
    const double best_share = share(b.target[best], b.class_weight[best]);
    const double total = sums.shares + best_share, rest = std::log1p(sums.s);
    const double plain = sums.loss + total * rest, lse = max + rest;
    // At the largest logit, p - t has the digits of 1 - p.
    const R at_best = (1 - b.target[best]) - s / z;
    double squares[1] = {};
    const R target_of_best = b.target[best];
    b.target[best] = 0;
    add_vectors<R>(b.size, squares, [&](int64_t at, V(&parts)[1]) {
      const V apart = load(b.logits + at) / z - load(b.target + at);
      parts[0] += apart * apart;
    });
    b.target[best] = target_of_best;
    const bool is_nan = plain != plain;
    const R margin = y == best ? max - second : x_y - max;
    const float scores[4] = {
        static_cast<float>(plain),
        static_cast<float>(std::sqrt(squares[0] + static_cast<double>(at_best) * at_best)),
        is_nan ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(margin),
        static_cast<float>(y == best && !is_nan)};
    const double loss = plain + (f.z_loss > 0 ? f.z_loss * lse * lse : 0);
    f.loss[row] = static_cast<R>(f.is_weighted() ? f.weight_of_row(row) * loss : loss);
    for (int k = 1; k < 4; ++k) f.scores[(k - 1) * f.count + row] = scores[k];
    if (f.recorded) f.recorded[row] = scores[static_cast<int>(f.score)];
    if (f.stats) {
      f.stats[2 * row] = max;
      f.stats[2 * row + 1] = s;
    }
    if (f.grad)
      soft_gradient(f, row, b, best, static_cast<R>(best_share), static_cast<R>(total), s,
                    static_cast<R>(lse), f.weight_of_row(row) * scale);
  }
}

template <typename T>
inline void backward_soft(const Backward<T>& b, int64_t begin, int64_t end) {
  using R = Compute<T>;
  const Rows<T>& f = b.rows;
  SoftBuffers<R> buffers(f);
  const Share<R> share(f);
  for (int64_t row = begin; row < end; ++row) {
    if (f.ignores(row)) {
      std::fill_n(f.grad + f.grad_at(row), f.classes, T(0));
      continue;
    }
    buffers.load_row(f, row);
    const R max = f.stats[2 * row], s = f.stats[2 * row + 1];
    const int64_t best = first_largest(buffers.logits, f.classes);
    const SoftSums<R> sums = soft_sums(f, buffers, best, max);
    const R best_share = share(buffers.target[best], buffers.class_weight[best]);
    soft_gradient(f, row, buffers, best, best_share, static_cast<R>(sums.shares + best_share), s,
                  max + std::log1p(s), f.weight_of_row(row) * b.upstream(row));
  }
}

// The same of few classes, a row a lane. upstream(row) is what comes from above.
template <typename T, bool kForward, typename Upstream>
inline void soft_tiles(const Rows<T>& f, int64_t begin, int64_t end, const Upstream& upstream) {
  using R = Compute<T>;
  using V = Vec<R>;
  using I = Int<R>;
  constexpr int kRows = kLanes<R>;
  constexpr R kLowest = -std::numeric_limits<R>::infinity();
  const Share<R> share(f);
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    alignas(64) R logits[kFewClasses][kRows], asked[kFewClasses][kRows];
    transpose(f, first, rows, logits);
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + std::min(r, rows - 1);
      for (int64_t c = 0; c < f.classes; ++c)
        asked[c][r] =
            f.distributions ? f.distributions[row * f.classes + c] : R(c == f.target[row]);
    }
    // The first of the largest; NaN is passed over, and shows in the sum.
    V max = splat(kLowest), most = splat(kLowest);
    I best = {}, y = {};
    for (int c = 0; c < f.classes; ++c) {
      const V x = load(logits[c]), t = load(asked[c]);
      const I larger = x > max, more = t > most;
      max = larger ? x : max;
      best = larger ? I{} + c : best;
      most = more ? t : most;
      y = more ? I{} + c : y;
    }
    V s = max - max, shares = {}, loss = {}, second = splat(kLowest), x_y = {};
    V asked_of_best = {}, share_of_best = {};
    for (int c = 0; c < f.classes; ++c) {
      const V x = load(logits[c]), below = x - max;
      const V t = share(load(asked[c]), splat(f.class_weight ? f.class_weight[c] : R(1)));
      const I is_best = best == c;
      const V e = is_best ? V{} : exp_nonpositive<Digits::kOfTerms>(below);
      s += e;
      shares += is_best ? V{} : t;
      loss += ((is_best == 0) & (t != 0)) ? -t * below : V{};
      second = ((is_best == 0) & (x > second)) ? x : second;
      x_y = y == c ? x : x_y;
      asked_of_best = is_best ? load(asked[c]) : asked_of_best;
      share_of_best = is_best ? t : share_of_best;
      store(logits[c], e);
    }
    const V z = 1 + s, total = shares + share_of_best, rest = log1p_nonnegative<R>(s);
    const V lse = max + rest, p_others = s / z;
    if constexpr (kForward) {
      V squares = {};
      for (int c = 0; c < f.classes; ++c) {
        const V apart =
            best == c ? (1 - asked_of_best) - p_others : load(logits[c]) / z - load(asked[c]);
        squares += apart * apart;
      }
      const V plain = loss + total * rest;
      const V with_z = f.z_loss > 0 ? plain + static_cast<R>(f.z_loss) * lse * lse : plain;
      const I right = (y == best) & (plain == plain);
      const V margin = plain != plain ? plain : y == best ? max - second : x_y - max;
      for (int r = 0; r < rows; ++r) {
        const int64_t row = first + r;
        const bool counts = !f.ignores(row);
        const float scores[4] = {static_cast<float>(plain[r]),
                                 static_cast<float>(std::sqrt(squares[r])),
                                 static_cast<float>(margin[r]), right[r] ? 1.0f : 0.0f};
        f.loss[row] =
            counts ? (f.is_weighted() ? f.weight_of_row(row) * with_z[r] : with_z[r]) : R(0);
        for (int k = 1; k < 4; ++k) f.scores[(k - 1) * f.count + row] = counts ? scores[k] : 0.0f;
        if (f.recorded) f.recorded[row] = counts ? scores[static_cast<int>(f.score)] : 0.0f;
        if (f.stats) {
          f.stats[2 * row] = counts ? max[r] : R(0);
          f.stats[2 * row + 1] = counts ? s[r] : R(0);
        }
      }
      if (f.grad == nullptr) continue;
    }
    V weight = {}, g_z = {};
    for (int r = 0; r < rows; ++r) {
      if (f.ignores(first + r)) continue;
      weight[r] = f.weight_of_row(first + r) * upstream(first + r);
      g_z[r] = of_z_loss(f, static_cast<R>(weight[r]), static_cast<R>(lse[r]));
    }
    const V factor = (weight * total + g_z) / z;
    const V own = z > 2 ? factor - weight * share_of_best
                        : weight * ((total - share_of_best) - total * p_others) + g_z / z;
    for (int c = 0; c < f.classes; ++c) {
      const V t = share(load(asked[c]), splat(f.class_weight ? f.class_weight[c] : R(1)));
      store(logits[c], best == c ? own : load(logits[c]) * factor - weight * t);
    }
    transpose_back(f, first, rows, logits);
  }
}

// Runs run(tile) with room for a tile, on the stack where it is small.
template <typename R, typename Run>
inline void with_tile(int64_t classes, const Run& run) {
  if (classes <= kFewClasses) {
    alignas(64) R tile[kFewClasses][kLanes<R>];
    run(tile);
  } else {
    std::vector<R> memory((classes + 1) * kLanes<R>);
    const int64_t past = reinterpret_cast<uintptr_t>(memory.data()) % CPFAST_VECTOR_BYTES;
    run(reinterpret_cast<Tile<R>>(memory.data() +
                                  (CPFAST_VECTOR_BYTES - past) / sizeof(R) % kLanes<R>));
  }
}

template <typename T>
inline void forward_rows(const Rows<T>& f, int64_t begin, int64_t end, Compute<T> scale) {
  using R = Compute<T>;
  if (f.is_soft() && f.classes <= kFewClasses)
    soft_tiles<T, true>(f, begin, end, [&](int64_t) { return scale; });
  else if (f.is_soft())
    forward_soft(f, begin, end, scale);
  else if (f.classes > kFewClasses && f.at.class_stride == 1 && f.grad_at.class_stride == 1)
    forward_many(f, begin, end, scale);
  else
    with_tile<R>(f.classes, [&](Tile<R> tile) { forward_tiles(f, begin, end, scale, tile); });
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
  const R weight = f.weight_of_row(row) * b.upstream(row), g = weight * f.weight_of_class(row);
  const R e_y = std::exp(static_cast<R>(x[y]) - max), z = s1 + e_y;
  const R g_z = of_z_loss(f, weight, max + std::log(z));
  const R per_sum = (g + g_z) / z;
  const R smooth = static_cast<R>(g * (f.smoothing / f.classes));
  const auto write = [&](int64_t c) {
    store(grad + c, exp_nonpositive<Digits::kOfTerms>(load(x + c) - max) * per_sum - smooth);
  };
  for (int64_t c = 0; c + kLanes<R> <= f.classes; c += kLanes<R>) write(c);
  write(f.classes - kLanes<R>);
  grad[y] = static_cast<T>(at_target(f.smoothing, f.classes, g, s1 * (g / z)) + g_z * (e_y / z));
}

template <typename T>
inline void backward_tiles(const Backward<T>& b, int64_t begin, int64_t end,
                           Tile<Compute<T>> logits) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr int kRows = kLanes<R>;
  const Rows<T>& f = b.rows;
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    transpose(f, first, rows, logits);
    R max[kRows], x_y[kRows], s1[kRows], weight[kRows], g[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + std::min(r, rows - 1), y = f.target[row];
      const bool counts = y != f.ignore_index;
      max[r] = f.stats[2 * row];
      s1[r] = f.stats[2 * row + 1];
      x_y[r] = counts ? logits[y][r] : max[r];
      weight[r] = f.weight_of_row(row) * b.upstream(row);
      g[r] = counts ? weight[r] * f.weight_of_class(row) : R(0);
    }
    const V e_y = exp_nonpositive(load(x_y) - load(max)), z = load(s1) + e_y;
    R g_z[kRows];
    for (int r = 0; r < kRows; ++r) g_z[r] = of_z_loss(f, weight[r], max[r] + std::log(z[r]));
    const V per_sum = (load(g) + load(g_z)) / z;
    const V smooth = load(g) * R(f.smoothing / f.classes);
    const V others = load(s1) * load(g) / z, own_z = load(g_z) * e_y / z;
    for (int64_t c = 0; c < f.classes; ++c)
      store(logits[c],
            exp_nonpositive<Digits::kOfTerms>(load(logits[c]) - load(max)) * per_sum - smooth);
    for (int r = 0; r < rows; ++r)
      if (!f.ignores(first + r))
        logits[f.target[first + r]][r] =
            at_target<R>(f.smoothing, f.classes, g[r], others[r]) + own_z[r];
    transpose_back(f, first, rows, logits);
  }
}

template <typename T>
inline void backward_rows(const Backward<T>& b, int64_t begin, int64_t end) {
  using R = Compute<T>;
  const Rows<T>& f = b.rows;
  if (f.is_soft() && f.classes <= kFewClasses)
    return soft_tiles<T, false>(f, begin, end, [&](int64_t row) { return b.upstream(row); });
  if (f.is_soft()) return backward_soft(b, begin, end);
  if (f.classes <= kFewClasses || f.at.class_stride != 1 || f.grad_at.class_stride != 1)
    return with_tile<R>(f.classes, [&](Tile<R> tile) { backward_tiles(b, begin, end, tile); });
  for (int64_t row = begin; row < end; ++row) backward_row(b, row);
}

template <typename T>
inline void rescale_strided(T* grad, int64_t stride, int64_t classes, Compute<T> factor) {
  using R = Compute<T>;
  for (int64_t c = 0; c < classes; ++c)
    grad[c * stride] = static_cast<T>(static_cast<R>(grad[c * stride]) * factor);
}

template <typename T>
inline void rescale_row(T* grad, int64_t classes, Compute<T> factor) {
  using R = Compute<T>;
  int64_t c = 0;
  for (; c + kLanes<R> <= classes; c += kLanes<R>) store(grad + c, load(grad + c) * factor);
  for (; c < classes; ++c) grad[c] = static_cast<T>(static_cast<R>(grad[c]) * factor);
}
