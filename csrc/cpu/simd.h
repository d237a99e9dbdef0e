// Vectors of the width of one instruction set. Included by foreach_isa.h, once for each, inside
// its namespace: no include guard, no #include.

template <typename Real>
struct VectorTypes;

template <>
struct VectorTypes<float> {
  typedef float Vec __attribute__((vector_size(CPFAST_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(CPFAST_VECTOR_BYTES)));
};
template <>
struct VectorTypes<double> {
  typedef double Vec __attribute__((vector_size(CPFAST_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(CPFAST_VECTOR_BYTES)));
};

template <typename Real>
using Vec = typename VectorTypes<Real>::Vec;
template <typename Real>
using Int = typename VectorTypes<Real>::Int;
template <typename Real>
using SignedInt = std::conditional_t<std::is_same_v<Real, double>, int64_t, int32_t>;
template <typename Real>
inline constexpr int kLanes = CPFAST_VECTOR_BYTES / sizeof(Real);

// What elements of T are computed in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

typedef uint16_t HalfWords __attribute__((vector_size(CPFAST_VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(CPFAST_VECTOR_BYTES)));

inline Vec<float> widen(HalfWords bits, c10::BFloat16) {
  return (Vec<float>)(__builtin_convertvector(bits, Words) << 16);
}

// In integers, for vectors of _Float16 become library calls below AVX512-FP16. The product moves
// the exponent's bias from 15 to 127, and makes subnormal halves normal floats.
inline Vec<float> widen(HalfWords bits, c10::Half) {
  const Words wide = __builtin_convertvector(bits, Words);
  const Words sign = (wide & 0x8000u) << 16;
  const Vec<float> magnitude = (Vec<float>)((wide & 0x7fffu) << 13) * 0x1p112f;
  const Words special = (Words)((wide & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (Vec<float>)((Words)magnitude | sign | special);
}

// kLanes<Compute<T>> consecutive elements from any address.
template <typename T>
inline Vec<Compute<T>> load(const T* from) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    Vec<T> values;
    std::memcpy(&values, from, sizeof(values));
    return values;
  } else {
    HalfWords bits;
    std::memcpy(&bits, from, sizeof(bits));
    return widen(bits, T{});
  }
}

// GCC loads a vector that is used twice from memory twice, which is what a kernel of few operations
// a byte is bound by.
template <typename V>
inline V in_register(V values) {
#ifdef __x86_64__
  asm("" : "+v"(values));
#endif
  return values;
}

// The first n < kLanes elements, the others being `fill`.
template <typename T>
inline Vec<Compute<T>> load_part(const T* from, int64_t n, T fill) {
  T part[kLanes<Compute<T>>];
  for (int i = 0; i < kLanes<Compute<T>>; ++i) part[i] = i < n ? from[i] : fill;
  return load(part);
}

template <typename Real>
inline Vec<Real> absolute(Vec<Real> values) {
  return (Vec<Real>)((Int<Real>)values & std::numeric_limits<SignedInt<Real>>::max());
}

template <typename Real>
inline Vec<Real> maximum(Vec<Real> a, Vec<Real> b) {
  return a > b ? a : b;
}

template <typename Real>
inline Vec<Real> splat(Real value) {
  return Vec<Real>{} + value;
}

template <typename Real>
inline Int<Real> lane_numbers() {
  Int<Real> lanes = {};
  for (int i = 0; i < kLanes<Real>; ++i) lanes[i] = i;
  return lanes;
}

// Halves upon halves: the lanes one after the other would be a sixth of the time of 1,000 classes.
template <typename Real>
inline double halved_sum(Vec<Real> values) {
  double sums[kLanes<Real>];
  for (int i = 0; i < kLanes<Real>; ++i) sums[i] = values[i];
  for (int half = kLanes<Real> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// std::sqrt would look for negative numbers, one by one, for the sake of errno.
template <typename Real>
inline Vec<Real> square_root(Vec<Real> values) {
#ifdef CPFAST_X86_CLONES
  constexpr bool kDouble = std::is_same_v<Real, double>;
#if CPFAST_VECTOR_BYTES == 64
  if constexpr (kDouble) return (Vec<Real>)_mm512_sqrt_pd((__m512d)values);
  if constexpr (!kDouble) return (Vec<Real>)_mm512_sqrt_ps((__m512)values);
#elif CPFAST_VECTOR_BYTES == 32
  if constexpr (kDouble) return (Vec<Real>)_mm256_sqrt_pd((__m256d)values);
  if constexpr (!kDouble) return (Vec<Real>)_mm256_sqrt_ps((__m256)values);
#else
  if constexpr (kDouble) return (Vec<Real>)_mm_sqrt_pd((__m128d)values);
  if constexpr (!kDouble) return (Vec<Real>)_mm_sqrt_ps((__m128)values);
#endif
#else
  for (int i = 0; i < kLanes<Real>; ++i) values[i] = std::sqrt(values[i]);
  return values;
#endif
}

inline void store(double* to, Vec<double> values) { std::memcpy(to, &values, sizeof(values)); }
inline void store(float* to, Vec<float> values) { std::memcpy(to, &values, sizeof(values)); }

inline void store(c10::BFloat16* to, Vec<float> values) {
  const Words bits = (Words)values;
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const HalfWords narrow =
      __builtin_convertvector(values == values ? rounded : Words{} + 0x7fc0u, HalfWords);
  std::memcpy(to, &narrow, sizeof(narrow));
}

inline void store(c10::Half* to, Vec<float> values) {
  for (int i = 0; i < kLanes<float>; ++i) to[i] = values[i];
}

template <typename T>
inline void store_part(T* to, Vec<Compute<T>> values, int64_t n) {
  T part[kLanes<Compute<T>>];
  store(part, values);
  for (int64_t i = 0; i < n; ++i) to[i] = part[i];
}

template <typename Real>
struct Exponent;  // How the exponent of a Real is laid out, and terms for half an ulp of a
                  // logarithm.
template <>
struct Exponent<float> {
  static constexpr int kBits = 23, kLogTerms = 6;
  // ln 2 in two parts, the first short enough for exact products with small integers.
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
};
template <>
struct Exponent<double> {
  static constexpr int kBits = 52, kLogTerms = 12;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
};

// exp of x <= 0, within 2 ulp; 0 below -87 (-708), where a softmax has nothing to lose. NaN stays,
// and exp(0) is 1. Terms of a sum with one of 1 among them need not be exact where they are small:
// then the error is 2 ulp and 1.4e-8 |x|, in nine tenths of the time.
enum class Digits { kAll, kOfTerms };

template <Digits kDigits = Digits::kAll>
inline Vec<float> exp_nonpositive(Vec<float> x) {
  // 2^n 2^f with n the nearest integer to x log2(e), in the low bits of a sum that also carries the
  // bias of the exponent; log2(e) in two parts, for n may be a hundred times f.
  constexpr float kMagic = 0x1.8p23f + 127, kLog2e = 0x1.715476p+0f, kLog2eLow = 0x1.4ae0cp-26f;
  const Vec<float> shifted = x * kLog2e + kMagic;
  const Vec<float> n = shifted - kMagic;
  // Without fused products x log2(e) would have lost the bits of f; x - n ln(2) has not.
  constexpr bool kFused = CPFAST_VECTOR_BYTES > 16;
  Vec<float> f = kFused ? x * kLog2e - n : ((x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f) * kLog2e;
  if constexpr (kFused && kDigits == Digits::kAll) f += x * kLog2eLow;
  // Minimax of the relative error over [-1/2, 1/2], 7.5e-8, but for a constant term of 1.
  Vec<float> sum = splat(0x1.5c08e6p-10f);
  for (const float c : {0x1.3d0c52p-7f, 0x1.c6b6e4p-5f, 0x1.ebf918p-3f, 0x1.62e428p-1f, 1.0f})
    sum = sum * f + c;
  const Vec<float> result = sum * (Vec<float>)((Int<float>)shifted << 23);
  return x < -87.0f ? Vec<float>{} : result;
}

template <Digits = Digits::kAll>
inline Vec<double> exp_nonpositive(Vec<double> x) {
  constexpr double kRound = 0x1.8p52;
  constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  const Vec<double> shifted = x * 1.4426950408889634 + kRound;
  const Vec<double> n = shifted - kRound;
  const Vec<double> r = (x - n * kLn2High) - n * kLn2Low;
  double factorial = 6227020800;  // 13!, beyond which terms are below half an ulp
  Vec<double> sum = splat(1 / factorial);
  for (int k = 13; k >= 1; --k) {
    factorial /= k;
    sum = sum * r + 1 / factorial;
  }
  const Int<double> power = ((Int<double>)shifted - (Int<double>)splat(kRound) + 1023) << 52;
  const Vec<double> result = sum * (Vec<double>)power;
  return x < -708.0 ? Vec<double>{} : result;
}

// log(1 + u) of u >= 0, within 2 ulp. NaN and +inf stay.
template <typename Real>
inline Vec<Real> log1p_nonnegative(Vec<Real> u) {
  using E = Exponent<Real>;
  using I = Int<Real>;
  const Vec<Real> w = 1 + u;
  const Vec<Real> lost = w - 1 > u ? (w - 1) - u : -(u - (w - 1));  // what rounding added to w
  // w = 2^n f with f in [0.707, 1.414)
  const I bits = (I)w;
  const I half = (I)splat<Real>(Real(0.70710678118654752));
  const I n = (bits - half) >> E::kBits;
  const Vec<Real> f = (Vec<Real>)(bits - (n << E::kBits));
  const Vec<Real> s = (f - 1) / (f + 1);
  const Vec<Real> z = s * s;
  Vec<Real> sum = splat<Real>(Real(1) / (2 * E::kLogTerms - 1));
  for (int k = E::kLogTerms - 2; k >= 0; --k) sum = sum * z + Real(1) / (2 * k + 1);
  const Vec<Real> n_real = __builtin_convertvector(n, Vec<Real>);
  const Vec<Real> result = n_real * E::kLn2High + (2 * s * sum + (n_real * E::kLn2Low - lost / w));
  return u < std::numeric_limits<Real>::infinity() ? result : u;
}
