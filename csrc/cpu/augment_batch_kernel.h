// The samples of augment_batch; included by foreach_isa.h.

typedef float Pixels __attribute__((vector_size(32)));  // two, of up to four channels each
typedef int32_t PixelIndices __attribute__((vector_size(32)));
typedef float Pixel __attribute__((vector_size(16)));
typedef uint8_t PixelBytes __attribute__((vector_size(8)));

inline constexpr int64_t kChunk = 128;

// The 8 bytes from a pixel on: it, its right neighbour, and below 4 channels what follows.
inline Pixels load_pixels(const uint8_t* from) {
#if defined(CPFAST_X86_CLONES) && CPFAST_VECTOR_BYTES > 16
  // GCC 12 converts a vector of 8 bytes one by one: three times the time of the whole kernel.
  return (Pixels)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  PixelBytes bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, PixelIndices), Pixels);
#endif
}

inline Pixel first_of(Pixels pixels) {
  Pixel pixel;
  std::memcpy(&pixel, &pixels, sizeof(pixel));
  return pixel;
}

template <int kChannels>
inline Pixel second_of(Pixels pixels) {
  constexpr int k = kChannels;
  return first_of(__builtin_shuffle(pixels, PixelIndices{k, k + 1, k + 2, k + 3, k, k, k, k}));
}

// Row r of a warped sample: [width, channels] from 0 to 255. Writes up to three floats past its
// end, and reads up to seven bytes past that of the image.
template <int kChannels>
void warp_row(const uint8_t* image, const Batch& batch, const Placement& at, int64_t r, float* to) {
  const int64_t width = batch.width;
  const int64_t last_row = (batch.height - 1) << 32, last_column = (width - 1) << 32;
  // The left one of two neighbours: for the last column, the one before it.
  const int32_t last_left = static_cast<int32_t>(std::max<int64_t>(width - 2, 0));
  const int32_t line = static_cast<int32_t>(width * kChannels);
  int32_t upper[kChunk], lower[kChunk];
  float down[kChunk], right[kChunk];
  for (int64_t first = 0; first < width; first += kChunk) {
    const int32_t n = static_cast<int32_t>(std::min(kChunk, width - first));
    int64_t row = at.row + r * at.row_down + first * at.row_right;
    int64_t column = at.column + r * at.column_down + first * at.column_right;
    for (int32_t i = 0; i < n; ++i) {
      const int64_t y = std::clamp<int64_t>(row, 0, last_row);
      const int64_t x = std::clamp<int64_t>(column, 0, last_column);
      row += at.row_right;
      column += at.column_right;
      const int32_t top = static_cast<int32_t>(y >> 32);
      const int32_t left = std::min(static_cast<int32_t>(x >> 32), last_left);
      const int32_t rest_y = static_cast<int32_t>((y - (int64_t{top} << 32)) >> 8);
      const int32_t rest_x = static_cast<int32_t>((x - (int64_t{left} << 32)) >> 8);
      down[i] = static_cast<float>(rest_y) * 0x1p-24f;
      right[i] = static_cast<float>(rest_x) * 0x1p-24f;
      upper[i] = top * line + left * kChannels;
      lower[i] = y < last_row ? upper[i] + line : upper[i];
    }
    for (int32_t i = 0; i < n; ++i, to += kChannels) {
      const Pixels above = load_pixels(image + upper[i]), below = load_pixels(image + lower[i]);
      const Pixels pixels = above + down[i] * (below - above);
      const Pixel left = first_of(pixels);
      const Pixel value = left + right[i] * (second_of<kChannels>(pixels) - left);
      std::memcpy(to, &value, sizeof(value));
    }
  }
}

template <int kChannels>
void flip_row(const uint8_t* from, int64_t width, uint8_t* to) {
  for (int64_t c = 0; c < width; ++c)
    std::memcpy(to + c * kChannels, from + (width - 1 - c) * kChannels, kChannels);
}

// The image padded by reflection and cut back to its size.
template <int kChannels>
void crop_image(const uint8_t* image, const Batch& batch, const Placement& at, uint8_t* to) {
  const int32_t height = static_cast<int32_t>(batch.height);
  const int32_t width = static_cast<int32_t>(batch.width);
  const int64_t line = int64_t{width} * kChannels;
  // Columns [first, last) are not reflected.
  const int32_t first = std::max(-at.crop_column, 0), last = width - std::max(at.crop_column, 0);
  for (int32_t r = 0; r < height; ++r, to += line) {
    const uint8_t* const from = image + reflect(r + at.crop_row, height) * line;
    const auto copy = [&](int32_t c) {
      std::memcpy(to + c * kChannels, from + reflect(c + at.crop_column, width) * kChannels,
                  kChannels);
    };
    for (int32_t c = 0; c < first; ++c) copy(c);
    std::memcpy(to + first * kChannels, from + (first + at.crop_column) * kChannels,
                (last - first) * kChannels);
    for (int32_t c = last; c < width; ++c) copy(c);
  }
}

inline Vec<float> load_values(const float* from) { return load(from); }

inline Vec<float> load_values(const uint8_t* from) {
#if defined(CPFAST_X86_CLONES) && CPFAST_VECTOR_BYTES == 64
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
  return (Vec<float>)_mm512_cvtepi32_ps(wide);
#elif defined(CPFAST_X86_CLONES) && CPFAST_VECTOR_BYTES == 32
  return load_pixels(from);
#else
  Vec<float> values;
  for (int i = 0; i < kLanes<float>; ++i) values[i] = from[i];
  return values;
#endif
}

// Called in two places, GCC would inline neither this nor number_rows(): the gather of 512 images
// of 32x32x3 took 8 % longer.
template <typename From, typename T>
__attribute__((always_inline)) inline void scale_values(const From* from, int64_t n,
                                                        const float* scale, const float* bias,
                                                        T* to) {
  int64_t i = 0;
  for (; i + kLanes<float> <= n; i += kLanes<float>)
    store(to + i, load_values(from + i) * load(scale + i) + load(bias + i));
  if (i == n) return;
  From part[kLanes<float>] = {};
  for (int64_t k = i; k < n; ++k) part[k - i] = from[k];
  store_part(to + i, load_values(part) * load(scale + i) + load(bias + i), n - i);
}

// The numbers of rows [first, first + rows), but for the hole. `to` may be `values`, though not
// where `flipped` is it.
template <int kChannels, typename T>
__attribute__((always_inline)) inline void number_rows(const uint8_t* image, const Batch& batch,
                                                       const Placement& at, int64_t first,
                                                       int64_t rows, float* values,
                                                       uint8_t* flipped, T* to) {
  const int64_t width = batch.width, line = width * kChannels, n = rows * line;
  const float* const bias = batch.bias + (batch.bias_of_image ? first * line : 0);
  if (batch.options.warps()) {
    for (int64_t r = 0; r < rows; ++r)
      warp_row<kChannels>(image, batch, at, first + r, values + r * line);
    scale_values(values, n, batch.scale, bias, to);
  } else {
    const uint8_t* from = image + first * line;
    if (at.flips) {
      for (int64_t r = 0; r < rows; ++r)
        flip_row<kChannels>(from + r * line, width, flipped + r * line);
      from = flipped;
    }
    scale_values(from, n, batch.scale, bias, to);
  }
}

// Of rows [first, first + rows), which begin at `to`.
template <int kChannels, typename T>
inline void clear_hole(const Batch& batch, const Placement& at, int64_t first, int64_t rows,
                       T* to) {
  const int64_t width = batch.width;
  const int64_t top = std::max<int64_t>(at.hole_row, first), left = std::max(at.hole_column, 0);
  const int64_t bottom = std::min(at.hole_row + int64_t{batch.options.cutout}, first + rows);
  const int64_t right = std::min(at.hole_column + int64_t{batch.options.cutout}, width);
  for (int64_t r = top; r < bottom; ++r)
    std::memset(to + ((r - first) * width + left) * kChannels, 0,
                (right - left) * kChannels * sizeof(T));
}

// Both may be read, and sums written, up to a vector past their n numbers.
template <bool kMore>
inline void sum_row(const float* row, float share, int64_t n, float* sums) {
  for (int64_t i = 0; i < n; i += kLanes<float>) {
    const Vec<float> values = load(row + i) * share;
    store(sums + i, kMore ? load(sums + i) + values : values);
  }
}

// The sums over the columns of the result; writes up to three floats past their end.
template <int kChannels>
void sum_columns(const Span* columns, int64_t width, const float* sums, float* to) {
  const auto pixel = [](const float* from) {
    Pixel values;
    std::memcpy(&values, from, sizeof(values));
    return values;
  };
  for (int64_t i = 0; i < width; ++i, to += kChannels) {
    const Span at = columns[i];
    const float* from = sums + int64_t{at.first} * kChannels;
    const float* const last = sums + int64_t{at.last} * kChannels;
    Pixel sum = pixel(from) * at.of_first;
    if (from < last) {
      while ((from += kChannels) < last) sum += pixel(from) * at.of_others;
      sum += pixel(last) * at.of_last;
    }
    std::memcpy(to, &sum, sizeof(sum));
  }
}

template <typename T>
inline void store_means(const float* sums, int64_t n, float share, T* to) {
  int64_t i = 0;
  for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load(sums + i) * share);
  if (i < n) store_part(to + i, load(sums + i) * share, n - i);
}

// A smaller sample: its rows are made band by band, and summed while they are in the cache. Apart
// from augment_samples(), so as not to crowd the registers of the full size.
template <int kChannels, typename T>
__attribute__((noinline)) void average_rows(const uint8_t* image, const Batch& batch,
                                            const Placement& at, const Scratch& scratch, T* out) {
  const Areas& areas = *batch.areas;
  const int64_t height = batch.height, line = batch.width * kChannels;
  const int64_t out_line = int64_t{areas.width} * kChannels;
  int32_t out_row = 0;
  Span span = areas.down.span(0);
  for (int64_t first = 0; first < height; first += batch.band) {
    const int64_t rows = std::min(batch.band, height - first);
    number_rows<kChannels>(image, batch, at, first, rows, scratch.values, scratch.flipped,
                           scratch.values);
    if (batch.options.cutout > 0) clear_hole<kChannels>(batch, at, first, rows, scratch.values);
    float* means = scratch.means;
    for (int64_t r = first; r < first + rows; ++r) {
      const float* const row = scratch.values + (r - first) * line;
      const float share = span.share(static_cast<int32_t>(r));
      if (r == span.first)
        sum_row<false>(row, share, line, scratch.sums);
      else
        sum_row<true>(row, share, line, scratch.sums);
      if (r < span.last) continue;
      sum_columns<kChannels>(batch.columns, areas.width, scratch.sums, means);
      means += out_line;
      span = areas.down.span(++out_row);
      if (r == span.first) sum_row<false>(row, span.of_first, line, scratch.sums);
    }
    const int64_t n = means - scratch.means;
    store_means(scratch.means, n, areas.share, out);
    out += n;
  }
}

template <int kChannels, typename T>
void augment_samples(const Batch& batch, int64_t begin, int64_t end, const Scratch& scratch) {
  const int64_t height = batch.height, width = batch.width, line = width * kChannels;
  const int64_t size = height * line;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t sample = batch.samples[i];
    const Placement at = place(batch.options, static_cast<int32_t>(height),
                               static_cast<int32_t>(width), sample, batch.repeats[i]);
    const uint8_t* image = batch.images + sample * size;
    if (batch.options.crop > 0) {
      crop_image<kChannels>(image, batch, at, scratch.image);
      image = scratch.image;
    } else if (batch.options.warps() && sample >= batch.samples_before_end) {
      // Past the images may lie memory that is not to be read.
      std::memcpy(scratch.image, image, size);
      image = scratch.image;
    }
    if (batch.areas != nullptr) {
      const int64_t out_size = int64_t{batch.areas->height} * batch.areas->width * kChannels;
      average_rows<kChannels>(image, batch, at, scratch, static_cast<T*>(batch.out) + i * out_size);
      continue;
    }
    T* const out = static_cast<T*>(batch.out) + i * size;
    for (int64_t first = 0; first < height; first += batch.band) {
      const int64_t rows = std::min(batch.band, height - first);
      number_rows<kChannels>(image, batch, at, first, rows, scratch.values,
                             reinterpret_cast<uint8_t*>(scratch.values), out + first * line);
    }
    if (batch.options.cutout > 0) clear_hole<kChannels>(batch, at, 0, height, out);
  }
}

inline void augment(const Batch& batch, int64_t begin, int64_t end, const Scratch& scratch) {
  for_floating(batch.dtype, [&]<typename T>(T) {
    if constexpr (!std::is_same_v<T, double>) {
      if (batch.channels == 1) augment_samples<1, T>(batch, begin, end, scratch);
      if (batch.channels == 2) augment_samples<2, T>(batch, begin, end, scratch);
      if (batch.channels == 3) augment_samples<3, T>(batch, begin, end, scratch);
      if (batch.channels == 4) augment_samples<4, T>(batch, begin, end, scratch);
    }
  });
}
