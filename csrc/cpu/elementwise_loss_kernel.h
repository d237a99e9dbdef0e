// Rows of the losses of elements, forward and backward; included by foreach_isa.h.

// log(1 + e) and what it shares a division with, 1 / (1 + e), of e in [0, 1]. The logarithm is
// 2 artanh(e / (2 + e)), whose series needs no range reduction.
template <typename R>
inline Vec<R> log1p_of_fraction(Vec<R> e, Vec<R>& reciprocal) {
  constexpr int kTerms = std::is_same_v<R, double> ? 16 : 7;  // for a quarter of an ulp
  const Vec<R> quotient = 1 / ((1 + e) * (2 + e));
  reciprocal = quotient * (2 + e);
  const Vec<R> s = e * (quotient * (1 + e)), z = s * s;
  Vec<R> sum = splat(R(2) / (2 * kTerms - 1));
  for (int k = kTerms - 2; k >= 0; --k) sum = sum * z + R(2) / (2 * k + 1);
  return s * sum;
}

template <typename R>
struct LaneSums {
  Vec<R> linear = {}, log = {}, squares = {};  // linear in shares
  Vec<R> least = splat(std::numeric_limits<R>::infinity());
  Int<R> wrong = {}, invalid = {};
};

// Adds elements, and returns the derivatives of their losses (half of them, of mse).
template <Loss kLoss, typename R>
inline Vec<R> add(LaneSums<R>& sums, Vec<R> x, Vec<R> t, Vec<R> pos_weight) {
  using V = Vec<R>;
  if constexpr (kLoss == Loss::kMse) {
    const V residual = x - t;
    sums.squares += residual * residual;
    return residual;
  } else {
    const V size = absolute<R>(x);
    const V e = exp_nonpositive(-size);
    V larger;
    const V log = log1p_of_fraction<R>(e, larger);
    const V smaller = e * larger;
    const V yes = x > 0 ? larger : smaller, no = x > 0 ? smaller : larger;
    const V negative = 1 - t, positive = pos_weight * t;
    const V factor = x > 0 ? negative : positive;
    // An infinite logit that the target agrees with costs nothing.
    sums.linear += factor == 0 ? V{} : factor * (size * R(kShare));
    sums.log += (negative + positive) * log;
    const V residual = (negative * yes - t * no) * R(kMultiple<kLoss, R>);
    sums.squares += residual * residual;
    const V side = t >= R(.5) ? x : -x;
    sums.least = side < sums.least ? side : sums.least;
    sums.wrong |= (t >= R(.5)) ^ (x > 0);
    sums.invalid |= ~((t >= 0) & (t <= 1));
    return negative * yes - positive * no;
  }
}

// What adds nothing.
template <Loss kLoss>
inline constexpr float kNeutral = kLoss == Loss::kMse ? 0 : -std::numeric_limits<float>::infinity();

// Halves upon halves, as the lanes one after the other would wait for each other.
template <typename R>
inline double halved_sum(Vec<R> values) {
  double sums[kLanes<R>];
  for (int i = 0; i < kLanes<R>; ++i) sums[i] = values[i];
  for (int half = kLanes<R> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// The elements [begin, end) of a row. Returns whether all targets may be.
template <Loss kLoss, bool kSums, bool kGrad, typename T, typename U>
inline bool part_of_row(const Rows<T, U>& f, int64_t row, int64_t begin, int64_t end,
                        Sums<Compute<T>>* sums) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr int64_t kStep = kLanes<R>, kAdditions = 128;  // to a lane, before going on in float64
  const T* x = f.input + row * f.input_stride;
  const U* t = f.target + row * f.target_stride;
  T* grad = kGrad ? f.grad + row * f.elements : nullptr;
  const V g = splat(kGrad ? f.gradient_factor(row) : R(0));
  LaneSums<R> lanes;
  double loss = 0, squares = 0;
  int64_t i = begin;
  while (i < end) {
    const int64_t stop = std::min(end, i + kAdditions * kStep);
    for (; i + kStep <= stop; i += kStep) {
      const V w = f.pos_weight ? load(f.pos_weight + i) : splat(R(1));
      const V derivative = add<kLoss, R>(lanes, load(x + i), load(t + i), w);
      if constexpr (kGrad) store(grad + i, derivative * g);
    }
    if (i < stop) {
      const int64_t left = stop - i;
      const V w = f.pos_weight ? load_part(f.pos_weight + i, left, R(1)) : splat(R(1));
      const V derivative =
          add<kLoss, R>(lanes, load_part(x + i, left, static_cast<T>(kNeutral<kLoss>)),
                        load_part(t + i, left, static_cast<U>(0.0f)), w);
      if constexpr (kGrad) store_part(grad + i, derivative * g, left);
      i = stop;
    }
    if constexpr (kSums) {
      if constexpr (kLoss != Loss::kMse)
        loss += halved_sum<R>(lanes.linear) / kShare + halved_sum<R>(lanes.log);
      squares += halved_sum<R>(lanes.squares);
      lanes.linear = lanes.log = lanes.squares = V{};
    }
  }
  if constexpr (!kSums) return true;
  R least = lanes.least[0];
  SignedInt<R> wrong = 0, invalid = 0;
  for (int k = 0; k < kLanes<R>; ++k) {
    least = lanes.least[k] < least ? lanes.least[k] : least;
    wrong |= lanes.wrong[k];
    invalid |= lanes.invalid[k];
  }
  *sums = {loss, squares, least, wrong != 0};
  return invalid == 0;
}

// Writes the losses and scores of `rows` rows, a lane a row.
template <Loss kLoss, typename T, typename U>
inline void finish(const Rows<T, U>& f, int64_t first, int rows, const Sums<Compute<T>>* sums) {
  using R = Compute<T>;
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    const double total = kLoss == Loss::kMse ? sums[r].squares : sums[r].loss;
    const R loss = static_cast<R>(total / static_cast<double>(f.elements));
    const bool is_nan = loss != loss;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float scores[4] = {
        static_cast<float>(loss),
        is_nan ? nan : static_cast<float>(std::sqrt(sums[r].squares) / kMultiple<kLoss, R>),
        is_nan ? nan : static_cast<float>(sums[r].least), is_nan || sums[r].wrong ? 0.0f : 1.0f};
    f.loss[row] = f.weight ? f.weight[row] * loss : loss;
    for (int64_t s = 0; s < kScores<kLoss>; ++s) f.scores[s * f.count + row] = scores[s + 1];
    if (f.recorded) f.recorded[row] = scores[static_cast<int>(f.score)];
  }
}

// One element each of `rows` rows, a lane a row; lanes past the last row repeat it.
template <typename T>
inline Vec<Compute<T>> load_column(const T* first, int64_t stride, int64_t rows) {
  constexpr int64_t kRows = kLanes<Compute<T>>;
  if (stride == 1 && rows == kRows) return load(first);
  T column[kRows];
  for (int64_t r = 0; r < kRows; ++r) column[r] = first[std::min(r, rows - 1) * stride];
  return load(column);
}

// Rows of few elements: the lanes hold rows.
template <Loss kLoss, bool kSums, bool kGrad, typename T, typename U>
inline bool few_elements(const Rows<T, U>& f, int64_t begin, int64_t end) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr int64_t kRows = kLanes<R>;
  Int<R> invalid = {};
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = std::min(kRows, end - first);
    V g = {};
    if constexpr (kGrad)
      for (int64_t r = 0; r < rows; ++r) g[r] = f.gradient_factor(first + r);
    LaneSums<R> lanes;
    for (int64_t c = 0; c < f.elements; ++c) {
      const V x = load_column(f.input + first * f.input_stride + c, f.input_stride, rows);
      const V t = load_column(f.target + first * f.target_stride + c, f.target_stride, rows);
      const V derivative =
          add<kLoss, R>(lanes, x, t, splat(f.pos_weight ? f.pos_weight[c] : R(1))) * g;
      if constexpr (kGrad) {
        T* grad = f.grad + first * f.elements + c;
        if (f.elements == 1 && rows == kRows) {
          store(grad, derivative);
        } else {
          T column[kRows];
          store(column, derivative);
          for (int64_t r = 0; r < rows; ++r) grad[r * f.elements] = column[r];
        }
      }
    }
    if constexpr (kSums) {
      Sums<R> sums[kRows];
      for (int r = 0; r < kRows; ++r)
        sums[r] = {lanes.linear[r] / kShare + lanes.log[r], lanes.squares[r], lanes.least[r],
                   lanes.wrong[r] != 0};
      finish<kLoss>(f, first, static_cast<int>(rows), sums);
      invalid |= lanes.invalid;
    }
  }
  SignedInt<R> any = 0;
  for (int k = 0; k < kRows; ++k) any |= invalid[k];
  return any == 0;
}

// Returns whether all targets may be.
template <Loss kLoss, bool kSums, bool kGrad, typename T, typename U>
inline bool whole_rows(const Rows<T, U>& f, int64_t begin, int64_t end) {
  if (f.elements <= kFewElements) return few_elements<kLoss, kSums, kGrad>(f, begin, end);
  bool valid = true;
  for (int64_t row = begin; row < end; ++row) {
    Sums<Compute<T>> sums;
    valid &= part_of_row<kLoss, kSums, kGrad>(f, row, 0, f.elements, &sums);
    if constexpr (kSums) finish<kLoss>(f, row, 1, &sums);
  }
  return valid;
}
