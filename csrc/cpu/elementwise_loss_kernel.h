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

// The elements [begin, end) of a row. Returns whether all targets may be.
template <Loss kLoss, bool kSums, bool kGrad, typename T, typename U>
inline bool part_of_row(const Rows<T, U>& f, int64_t row, int64_t begin, int64_t end,
                        Sums<Compute<T>>* sums) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr int64_t kStep = kLanes<R>;
  constexpr int64_t kBlock = 126 * kStep;  // 128 numbers at most to a lane, before float64
  const T* x = f.input + row * f.input_stride;
  const U* t = f.target + row * f.target_stride;
  T* grad = kGrad ? f.grad + row * f.elements : nullptr;
  const V g = splat(kGrad ? f.gradient_factor(row) : R(0));
  LaneSums<R> lanes;
  double loss = 0, squares = 0;

  const int64_t left = (end - begin) % kStep, full = end - left;
  if (left > 0 && end - begin >= kStep) {
    // The last vector first: of its lanes that others have too, they write the gradients after it.
    const int64_t at = end - kStep;
    const Int<R> own = lane_numbers<R>() >= static_cast<int>(kStep - left);
    const V w = f.pos_weight ? load(f.pos_weight + at) : splat(R(1));
    const V derivative = add<kLoss, R>(lanes, own ? load(x + at) : splat(R(kNeutral<kLoss>)),
                                       own ? load(t + at) : V{}, w);
    if constexpr (kGrad) store(grad + at, derivative * g);
  } else if (left > 0) {
    const V w = f.pos_weight ? load_part(f.pos_weight + full, left, R(1)) : splat(R(1));
    const V derivative =
        add<kLoss, R>(lanes, load_part(x + full, left, static_cast<T>(kNeutral<kLoss>)),
                      load_part(t + full, left, static_cast<U>(0.0f)), w);
    if constexpr (kGrad) store_part(grad + full, derivative * g, left);
  }
  for (int64_t i = begin; i < full || kSums;) {
    const int64_t stop = std::min(full, i + kBlock);
    for (; i < stop; i += kStep) {
      const V w = f.pos_weight ? load(f.pos_weight + i) : splat(R(1));
      const V derivative = add<kLoss, R>(lanes, load(x + i), load(t + i), w);
      if constexpr (kGrad) store(grad + i, derivative * g);
    }
    if constexpr (kSums) {
      if constexpr (kLoss != Loss::kMse)
        loss += halved_sum<R>(lanes.linear) / kShare + halved_sum<R>(lanes.log);
      squares += halved_sum<R>(lanes.squares);
      lanes.linear = lanes.log = lanes.squares = V{};
      if (i >= full) break;
    }
  }
  if constexpr (!kSums) return true;
  R least = lanes.least[0];
  SignedInt<R> wrong = 0, invalid = 0;
  if constexpr (kLoss != Loss::kMse) {
    for (int k = 0; k < kLanes<R>; ++k) {
      least = lanes.least[k] < least ? lanes.least[k] : least;
      wrong |= lanes.wrong[k];
      invalid |= lanes.invalid[k];
    }
  }
  *sums = {kLoss == Loss::kMse ? squares : loss, squares, least, wrong != 0};
  return invalid == 0;
}

// What is made of the sums of some rows, a lane a row.
template <typename R>
struct Results {
  alignas(64) R loss[kLanes<R>], el2n[kLanes<R>], margin[kLanes<R>], correct[kLanes<R>];
};

template <Loss kLoss, typename R>
inline void put(Results<R>& results, int lane, const Sums<R>& sums, int64_t elements) {
  results.loss[lane] = static_cast<R>(sums.loss / static_cast<double>(elements));
  results.el2n[lane] = static_cast<R>(std::sqrt(sums.squares) / kMultiple<kLoss, R>);
  results.margin[lane] = sums.least;
  results.correct[lane] = sums.wrong ? R(0) : R(1);
}

template <typename To, typename R>
inline void write_rows(To* to, Vec<R> values, int64_t rows) {
  if constexpr (std::is_same_v<To, R>) {
    if (rows == kLanes<R>) return store(to, values);
  }
  R each[kLanes<R>];
  store(each, values);
  for (int64_t r = 0; r < rows; ++r) to[r] = static_cast<To>(each[r]);
}

// Writes the losses and scores of `rows` rows.
template <Loss kLoss, typename T, typename U>
inline void finish(const Rows<T, U>& f, int64_t first, int64_t rows,
                   const Results<Compute<T>>& results) {
  using R = Compute<T>;
  using V = Vec<R>;
  const V loss = load(results.loss), nan = splat(std::numeric_limits<R>::quiet_NaN());
  const Int<R> is_nan = loss != loss;
  const V scores[] = {loss, is_nan ? nan : load(results.el2n), is_nan ? nan : load(results.margin),
                      is_nan ? V{} : load(results.correct)};
  V weight = splat(R(1));
  if (f.weight)
    weight = rows == kLanes<R> ? load(f.weight + first) : load_part(f.weight + first, rows, R(1));
  write_rows<R, R>(f.loss + first, weight * loss, rows);
  for (int64_t s = 0; s < kScores<kLoss>; ++s)
    write_rows<float, R>(f.scores + s * f.count + first, scores[s + 1], rows);
  if (f.recorded) write_rows<float, R>(f.recorded + first, scores[static_cast<int>(f.score)], rows);
}

// Of one row that was summed in parts.
template <Loss kLoss, typename T, typename U>
inline void finish_row(const Rows<T, U>& f, int64_t row, const Sums<Compute<T>>& sums) {
  Results<Compute<T>> results = {};
  put<kLoss>(results, 0, sums, f.elements);
  finish<kLoss>(f, row, 1, results);
}

// One element each of `rows` rows; lanes past the last row repeat it.
template <typename T>
inline Vec<Compute<T>> load_column(const T* first, int64_t stride, int64_t rows) {
  constexpr int64_t kRows = kLanes<Compute<T>>;
  T column[kRows];
  if (rows == kRows) {
    if (stride == 1) return load(first);
    for (int64_t r = 0; r < kRows; ++r) column[r] = first[r * stride];
  } else {
    for (int64_t r = 0; r < kRows; ++r) column[r] = first[std::min(r, rows - 1) * stride];
  }
  return load(column);
}

// Rows of few elements: the lanes hold rows.
template <Loss kLoss, bool kSums, bool kGrad, typename T, typename U>
inline bool few_elements(const Rows<T, U>& f, int64_t begin, int64_t end) {
  using R = Compute<T>;
  using V = Vec<R>;
  constexpr int64_t kRows = kLanes<R>;
  const V count = splat(static_cast<R>(f.elements));
  Int<R> invalid = {};
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = std::min(kRows, end - first);
    V g = {};
    if constexpr (kGrad) {
      R factors[kRows] = {};
      for (int64_t r = 0; r < rows; ++r) factors[r] = f.gradient_factor(first + r);
      g = load(factors);
    }
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
      const V squares = lanes.squares / count;
      Results<R> results;
      store(results.loss,
            kLoss == Loss::kMse ? squares : lanes.linear / count / R(kShare) + lanes.log / count);
      store(results.el2n, square_root<R>(lanes.squares) / R(kMultiple<kLoss, R>));
      store(results.margin, lanes.least);
      store(results.correct, lanes.wrong != 0 ? V{} : splat(R(1)));
      finish<kLoss>(f, first, rows, results);
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
  constexpr int kRows = kLanes<Compute<T>>;
  bool valid = true;
  Results<Compute<T>> results;
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
    for (int r = 0; r < kRows; ++r) {
      Sums<Compute<T>> sums = {};
      if (r < rows) valid &= part_of_row<kLoss, kSums, kGrad>(f, first + r, 0, f.elements, &sums);
      if constexpr (kSums) put<kLoss>(results, r, sums, f.elements);
    }
    if constexpr (kSums) finish<kLoss>(f, first, rows, results);
  }
  return valid;
}
