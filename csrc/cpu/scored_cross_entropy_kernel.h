// Rows of scored_cross_entropy, forward and backward; included by foreach_isa.h.

// Up to this many classes the lanes hold rows; above, they hold the classes of one row.
inline constexpr int64_t kFewClasses = 64;

// The largest of x[0..n) and start; NaN is passed over, the sums will show it.
template <typename T>
inline Compute<T> max_of(const T* x, int64_t n, Compute<T> start) {
  using Real = Compute<T>;
  constexpr Real kLowest = -std::numeric_limits<Real>::infinity();
  constexpr int64_t kStep = 2 * kLanes<Real>;
  Vec<Real> largest[2] = {splat<Real>(start), splat<Real>(start)};
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep)
    for (int v = 0; v < 2; ++v)
      largest[v] = maximum<Real>(load(x + i + v * kLanes<Real>), largest[v]);
  for (; i < n; i += kLanes<Real>)
    largest[0] = maximum<Real>(load_part(x + i, std::min<int64_t>(n - i, kLanes<Real>), T(kLowest)),
                               largest[0]);
  return lane_max<Real>(maximum<Real>(largest[0], largest[1]));
}

// Adds e = exp(x - max), e^2 and x - x_y: at most 128 float32 additions an accumulator, then in
// float64.
template <bool kTotal, typename T>
inline void add_sums(const T* x, int64_t n, Compute<T> max, T x_y, double& s1, double& s2,
                     double& total) {
  using Real = Compute<T>;
  using V = Vec<Real>;
  constexpr int64_t kStep = 2 * kLanes<Real>;
  const V shift = splat<Real>(max), target = splat<Real>(x_y);
  while (n > 0) {
    V e1[2] = {}, e2[2] = {}, sum[2] = {};
    const int64_t block = std::min<int64_t>(n, 128 * kStep);
    int64_t i = 0;
    for (; i + kStep <= block; i += kStep)
      for (int v = 0; v < 2; ++v) {
        const V value = load(x + i + v * kLanes<Real>);
        const V e = exp_nonpositive<Real>(value - shift);
        e1[v] += e;
        e2[v] += e * e;
        if constexpr (kTotal) sum[v] += value - target;
      }
    for (; i < block; i += kLanes<Real>) {
      const int64_t rest = std::min<int64_t>(block - i, kLanes<Real>);
      const V e = exp_nonpositive<Real>(
          load_part(x + i, rest, T(-std::numeric_limits<Real>::infinity())) - shift);
      e1[0] += e;
      e2[0] += e * e;
      if constexpr (kTotal) sum[0] += load_part(x + i, rest, x_y) - target;
    }
    s1 += lane_sum(e1[0] + e1[1]);
    s2 += lane_sum(e2[0] + e2[1]);
    if constexpr (kTotal) total += lane_sum(sum[0] + sum[1]);
    x += block;
    n -= block;
  }
}

template <typename T>
inline void forward_row(const Forward<T>& f, int64_t row) {
  using Real = Compute<T>;
  constexpr Real kLowest = -std::numeric_limits<Real>::infinity();
  const int64_t y = f.target[row];
  if (y == f.ignore_index) return f.write_ignored(row);
  const T* x = f.input + row * f.row_stride;
  const Real x_y = x[y];
  const Real before = max_of(x, y, kLowest);
  const Real after = max_of(x + y + 1, f.classes - y - 1, kLowest);
  const Real others = std::max(before, after), max = std::max(others, x_y);
  // Where all others are masked, subtracting -inf would make NaN of them.
  const Real shift = others == kLowest ? Real(0) : others;
  double s1 = 0, s2 = 0, total = 0;
  const auto add = [&]<bool kTotal>(std::bool_constant<kTotal>) {
    add_sums<kTotal>(x, y, shift, x[y], s1, s2, total);
    add_sums<kTotal>(x + y + 1, f.classes - y - 1, shift, x[y], s1, s2, total);
  };
  if (f.smoothing > 0)
    add(std::true_type{});
  else
    add(std::false_type{});
  const double gap = std::exp(static_cast<double>(others) - max);
  const double e_y = std::exp(static_cast<double>(x_y) - max);
  const double nll = x_y >= max ? std::log1p(s1 * gap / e_y)
                                : (static_cast<double>(max) - x_y) + std::log(s1 * gap + e_y);
  f.write(row, nll, s1, s2, gap, total, e_y, x_y, before, after);
}

template <typename T>
inline void forward_few(const Forward<T>& f, int64_t begin, int64_t end) {
  using Real = Compute<T>;
  using V = Vec<Real>;
  using I = Int<Real>;
  constexpr int kRows = kLanes<Real>;
  constexpr Real kLowest = -std::numeric_limits<Real>::infinity();
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    Real logits[kFewClasses][kRows];
    I y = {};
    for (int r = 0; r < kRows; ++r) {
      // Lanes past the last row repeat it.
      const int64_t row = first + std::min(r, rows - 1);
      const T* x = f.input + row * f.row_stride;
      for (int64_t c = 0; c < f.classes; ++c) logits[c][r] = x[c];
      // An ignored row needs some valid target while the lanes march together.
      y[r] = f.target[row] == f.ignore_index ? 0 : static_cast<int>(f.target[row]);
    }
    V before = splat(kLowest), after = splat(kLowest), x_y = {}, total = {};
    for (int c = 0; c < f.classes; ++c) {
      const V x = load(logits[c]);
      before = (y > c) & (x > before) ? x : before;
      after = (y < c) & (x > after) ? x : after;
      x_y = y == c ? x : x_y;
    }
    const V others = maximum<Real>(before, after), max = maximum<Real>(others, x_y);
    const V shift = others == kLowest ? V{} : others;
    V s1 = {}, s2 = {};
    for (int c = 0; c < f.classes; ++c) {
      const V e = exp_nonpositive<Real>(load(logits[c]) - shift);
      const V other = y == c ? V{} : e;
      s1 += other;
      s2 += other * other;
      total += load(logits[c]) - x_y;
    }
    const V gap = exp_nonpositive<Real>(others - max), e_y = exp_nonpositive<Real>(x_y - max);
    // As in forward_row; where the target is not the largest, gap and one term of s1 are 1.
    const I largest = x_y >= max;
    const V u = largest ? s1 * gap / e_y : (s1 - 1) + e_y;
    const V nll = (largest ? V{} : max - x_y) + log1p_nonnegative<Real>(u < 0 ? V{} : u);
    for (int r = 0; r < rows; ++r) {
      if (f.target[first + r] == f.ignore_index)
        f.write_ignored(first + r);
      else
        f.write(first + r, nll[r], s1[r], s2[r], gap[r], total[r], e_y[r], x_y[r], before[r],
                after[r]);
    }
  }
}

template <typename T>
inline void forward_rows(const Forward<T>& f, int64_t begin, int64_t end) {
  if (f.classes <= kFewClasses) return forward_few(f, begin, end);
  for (int64_t row = begin; row < end; ++row) forward_row(f, row);
}

template <typename T>
inline void backward_row(const Backward<T>& b, int64_t row) {
  using Real = Compute<T>;
  T* grad = b.grad_input + row * b.classes;
  const int64_t y = b.target[row];
  if (y == b.ignore_index) {
    std::fill(grad, grad + b.classes, T(0));
    return;
  }
  const T* x = b.input + row * b.row_stride;
  const Real max = b.stats[2 * row], s1 = b.stats[2 * row + 1];
  const Real g = b.row_gradient(row);
  const Real per_sum = g / (s1 + std::exp(static_cast<Real>(x[y]) - max));
  const Real smooth = g * (b.smoothing / b.classes);
  int64_t c = 0;
  for (; c + kLanes<Real> <= b.classes; c += kLanes<Real>)
    store(grad + c, exp_nonpositive<Real>(load(x + c) - max) * per_sum - smooth);
  if (c < b.classes)
    store_part(grad + c,
               exp_nonpositive<Real>(load_part(x + c, b.classes - c, T(0)) - max) * per_sum - smooth,
               b.classes - c);
  grad[y] = static_cast<T>(b.at_target(g, s1 * per_sum));
}

template <typename T>
inline void backward_few(const Backward<T>& b, int64_t begin, int64_t end) {
  using Real = Compute<T>;
  using V = Vec<Real>;
  constexpr int kRows = kLanes<Real>;
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    Real logits[kFewClasses][kRows];
    Real max[kRows], x_y[kRows], s1[kRows], g[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + std::min(r, rows - 1);
      const T* x = b.input + row * b.row_stride;
      for (int64_t c = 0; c < b.classes; ++c) logits[c][r] = x[c];
      max[r] = b.stats[2 * row];
      s1[r] = b.stats[2 * row + 1];
      x_y[r] = b.target[row] == b.ignore_index ? max[r] : static_cast<Real>(x[b.target[row]]);
      g[r] = b.row_gradient(row);
    }
    const V z = load(s1) + exp_nonpositive<Real>(load(x_y) - load(max));
    const V per_sum = load(g) / z;
    const V smooth = load(g) * Real(b.smoothing / b.classes);
    for (int64_t c = 0; c < b.classes; ++c) {
      const V grad = exp_nonpositive<Real>(load(logits[c]) - load(max)) * per_sum - smooth;
      std::memcpy(logits[c], &grad, sizeof(grad));
    }
    Real scaled[kRows];
    const V others = load(s1) * per_sum;
    std::memcpy(scaled, &others, sizeof(others));
    for (int r = 0; r < rows; ++r) {
      const int64_t y = b.target[first + r];
      T* grad = b.grad_input + (first + r) * b.classes;
      if (y == b.ignore_index) {
        std::fill(grad, grad + b.classes, T(0));
        continue;
      }
      for (int64_t c = 0; c < b.classes; ++c) grad[c] = static_cast<T>(logits[c][r]);
      grad[y] = static_cast<T>(b.at_target(g[r], scaled[r]));
    }
  }
}

template <typename T>
inline void backward_rows(const Backward<T>& b, int64_t begin, int64_t end) {
  if (b.classes <= kFewClasses) return backward_few(b, begin, end);
  for (int64_t row = begin; row < end; ++row) backward_row(b, row);
}
