#include "../augment_batch.h"

#include "device.h"
#include "launch.h"

#include <algorithm>

namespace cpfast::augment_batch {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kGroup = 4;  // neighbouring pixels that a thread writes
constexpr int kWarpPixels = 32 * kGroup;
// An image of at most so many pixels is read once, into shared memory, and has one block.
constexpr int kStagedPixels = 4096;
// Of a larger one, a block writes so many, and reads through the caches.
constexpr int kTilePixels = kWarps * kWarpPixels;
// Of a smaller result of a larger image, a block writes so many strips, each thread one.
constexpr int kTileStrips = kThreads;

// An optional tensor of int64 or int32, or one number.
struct Integers {
  const void* data;
  bool wide;
  int64_t otherwise;

  __device__ int64_t operator[](int64_t i) const {
    if (data == nullptr) return otherwise;
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

struct Batch {
  const uint8_t* images;
  int64_t samples;
  Integers index, repeats;
  int32_t height, width, pixels;  // pixels = height * width
  int32_t tiles;                  // blocks a sample
  Options options;
  Numbers numbers;
  const float* mean_image;  // or null
  void* out;
  bool reads_words, writes_vectors;
};

// The channels of one pixel, from the lowest byte up; what is above them is not looked at.
template <int kChannels>
__device__ uint32_t load_pixel(const uint8_t* at) {
  uint32_t word = 0;
#pragma unroll
  for (int k = 0; k < kChannels; ++k) word |= uint32_t{__ldg(at + k)} << (8 * k);
  return word;
}

// The pixel at row r, column c of the cropped image, counted in the whole one.
__device__ int cropped(const Batch& batch, const Placement& at, int r, int c) {
  return reflect(r + at.crop_row, batch.height) * batch.width +
      reflect(c + at.crop_column, batch.width);
}

// The pixels of the cropped image, one word each.
template <int kChannels>
__device__ void stage_image(const Batch& batch, const Placement& at, const uint8_t* image,
                            uint32_t* staged, int threads) {
  const bool crops = batch.options.crop > 0;
  if (crops) __syncthreads();  // until it is known where
  if (crops || !batch.reads_words) {
    for (int p = threadIdx.x; p < batch.pixels; p += threads) {
      const int r = p / batch.width;
      const int from = crops ? cropped(batch, at, r, p - r * batch.width) : p;
      staged[p] = load_pixel<kChannels>(image + from * kChannels);
    }
    return;
  }
  // Whole words of the image: pixels are a multiple of four, and so their bytes of four.
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(image);
  for (int group = threadIdx.x; group < batch.pixels / kGroup; group += threads) {
    uint32_t packed[kChannels + 1];
#pragma unroll
    for (int k = 0; k < kChannels; ++k) packed[k] = __ldg(words + group * kChannels + k);
    packed[kChannels] = 0;
    uint4 pixels;
    uint32_t* const pixel[kGroup] = {&pixels.x, &pixels.y, &pixels.z, &pixels.w};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int byte = i * kChannels;
      *pixel[i] = __funnelshift_r(packed[byte / 4], packed[byte / 4 + 1], byte % 4 * 8);
    }
    reinterpret_cast<uint4*>(staged)[group] = pixels;
  }
}

// Reads a pixel of the cropped image.
template <int kChannels, bool kStaged>
struct Reader {
  const Batch& batch;
  const Placement& at;
  const uint8_t* image;
  const uint32_t* staged;

  __device__ uint32_t operator()(int r, int c) const {
    if constexpr (kStaged) {
      return staged[r * batch.width + c];
    } else {
      const int pixel = batch.options.crop > 0 ? cropped(batch, at, r, c) : r * batch.width + c;
      return load_pixel<kChannels>(image + int64_t{pixel} * kChannels);
    }
  }
};

// Channel k of a pixel, plus 2^23: the byte becomes the low end of a float's significand.
__device__ inline float channel_plus(uint32_t pixel, int k) {
  return __uint_as_float(__byte_perm(pixel, 0x4b000000u, 0x7540u + static_cast<unsigned>(k)));
}

constexpr float kPlus = 0x1p23f;

// What a warped sample shows at (y, x), in units of 2^-32 pixel: its channels, from 0 to 255.
template <int kChannels, typename Read>
__device__ void interpolate(const Read& read, const Batch& batch, int64_t y, int64_t x,
                            float* values) {
  const auto within = [](int i, int n) { return static_cast<int>(max(0, min(i, n - 1))); };
  const auto fraction = [](int64_t position) {
    return static_cast<float>(static_cast<int>(static_cast<uint32_t>(position) >> 8)) * 0x1p-24f;
  };
  const int r = static_cast<int>(y >> 32), c = static_cast<int>(x >> 32);
  // Beyond an edge both neighbours are the edge, and the fraction does not matter.
  const int top = within(r, batch.height), bottom = within(r + 1, batch.height);
  const int left = within(c, batch.width), right = within(c + 1, batch.width);
  const uint32_t top_left = read(top, left), bottom_left = read(bottom, left);
  const uint32_t top_right = read(top, right), bottom_right = read(bottom, right);
  const float down = fraction(y), across = fraction(x);
#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    const float a = channel_plus(top_left, k), b = channel_plus(top_right, k);
    const float on_left = (a - kPlus) + down * (channel_plus(bottom_left, k) - a);
    const float on_right = (b - kPlus) + down * (channel_plus(bottom_right, k) - b);
    values[k] = on_left + across * (on_right - on_left);
  }
}

// kCount floats into to, and 0 from number n on: none beside them is read.
template <int kCount>
__device__ void load_some(const float* from, int n, float (&to)[kCount]) {
  if (n >= kCount && is_aligned(from)) {
    load<true>(from, to);
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = i < n ? from[i] : 0;
}

// Whether the pixel at row r, column c is cut out.
__device__ inline bool is_hole(const Batch& batch, const Placement& at, int r, int c) {
  const auto side = static_cast<unsigned>(batch.options.cutout);
  return static_cast<unsigned>(r - at.hole_row) < side &&
      static_cast<unsigned>(c - at.hole_column) < side;
}

// The values of a group of pixels from `first` on, of which n are the image's. Those past it are
// computed too, from pixels of the image, for a branch would keep the four apart.
template <int kChannels, bool kStaged>
__device__ void augment_group(const Batch& batch, const Placement& at,
                              const Reader<kChannels, kStaged>& read, int first, int n,
                              float (&values)[kGroup * kChannels]) {
  int rows[kGroup], columns[kGroup];
  rows[0] = first / batch.width;
  columns[0] = first - rows[0] * batch.width;
#pragma unroll
  for (int i = 1; i < kGroup; ++i) {
    const bool wraps = columns[i - 1] + 1 == batch.width;
    rows[i] = rows[i - 1] + wraps;
    columns[i] = wraps ? 0 : columns[i - 1] + 1;
  }

  if (batch.options.warps()) {
    int64_t y = at.row + rows[0] * at.row_down + columns[0] * at.row_right;
    int64_t x = at.column + rows[0] * at.column_down + columns[0] * at.column_right;
    // From a row's last pixel to the next row's first one.
    const int64_t y_wrap = at.row_down - (batch.width - 1) * at.row_right;
    const int64_t x_wrap = at.column_down - (batch.width - 1) * at.column_right;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i > 0) {
        y += columns[i] == 0 ? y_wrap : at.row_right;
        x += columns[i] == 0 ? x_wrap : at.column_right;
      }
      interpolate<kChannels>(read, batch, y, x, values + i * kChannels);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t bytes = read(static_cast<int>(min(rows[i], batch.height - 1)),
                                  at.flips ? batch.width - 1 - columns[i] : columns[i]);
#pragma unroll
      for (int k = 0; k < kChannels; ++k)
        values[i * kChannels + k] = channel_plus(bytes, k) - kPlus;
    }
  }

  float biases[kGroup * kChannels];
  if (batch.mean_image != nullptr) {
    load_some(batch.mean_image + int64_t{first} * kChannels, n * kChannels, biases);
#pragma unroll
    for (int i = 0; i < kGroup * kChannels; ++i)
      biases[i] *= -batch.numbers.inverse_std[i % kChannels];
  } else {
#pragma unroll
    for (int i = 0; i < kGroup * kChannels; ++i) biases[i] = batch.numbers.bias[i % kChannels];
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const bool hole = is_hole(batch, at, rows[i], columns[i]);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      float& value = values[i * kChannels + k];
      value = hole ? 0 : value * batch.numbers.scale[k] + biases[i * kChannels + k];
    }
  }
}

// The sum over a span of row r, of one column of a smaller result.
template <int kChannels, bool kStaged>
__device__ void sum_span(const Batch& batch, const Placement& at,
                         const Reader<kChannels, kStaged>& read, int r, const Span& span,
                         float (&sums)[kChannels]) {
#pragma unroll
  for (int k = 0; k < kChannels; ++k) sums[k] = 0;
  int64_t y = at.row + r * at.row_down + span.first * at.row_right;
  int64_t x = at.column + r * at.column_down + span.first * at.column_right;
  for (int c = span.first; c <= span.last; ++c) {
    float values[kChannels];
    if (batch.options.warps()) {
      interpolate<kChannels>(read, batch, y, x, values);
      y += at.row_right;
      x += at.column_right;
    } else {
      const uint32_t bytes = read(r, at.flips ? batch.width - 1 - c : c);
#pragma unroll
      for (int k = 0; k < kChannels; ++k) values[k] = channel_plus(bytes, k) - kPlus;
    }
    if (is_hole(batch, at, r, c)) continue;
    const float share = span.share(c);
    const int64_t pixel = r * batch.width + c;
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      const float bias = batch.mean_image == nullptr
          ? batch.numbers.bias[k]
          : __ldg(batch.mean_image + pixel * kChannels + k) * -batch.numbers.inverse_std[k];
      sums[k] += share * (values[k] * batch.numbers.scale[k] + bias);
    }
  }
}

// Writes rows [row, end) of one column of a smaller result. A row of the image that two of them
// share is summed once; a pixel that two columns share, for each.
template <typename T, int kChannels, bool kStaged>
__device__ void average_column(const Batch& batch, const Areas& areas, const Placement& at,
                               const Reader<kChannels, kStaged>& read, int row, int end, int column,
                               T* out) {
  const Span across = areas.across.span(column);
  Span down = areas.down.span(row);
  float sums[kChannels] = {};
  for (int r = down.first; row < end; ++r) {
    float of_row[kChannels];
    sum_span<kChannels, kStaged>(batch, at, read, r, across, of_row);
    const float share = down.share(r);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) sums[k] += share * of_row[k];
    if (r < down.last) continue;
    T* const to = out + (int64_t{row} * areas.width + column) * kChannels;
    down = areas.down.span(++row);
    const bool shares = r == down.first;
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      to[k] = static_cast<T>(sums[k] * areas.share);
      sums[k] = shares ? down.of_first * of_row[k] : 0;
    }
  }
}

// To shared memory, by accesses of 16 bytes, or of 8.
template <typename T, int kCount>
__device__ void store_group(const float (&values)[kCount], T* to) {
  using Unit = std::conditional_t<kCount * sizeof(T) % 16 == 0, uint4, uint64_t>;
  T narrow[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) narrow[i] = static_cast<T>(values[i]);
  Unit units[sizeof(narrow) / sizeof(Unit)];
  std::memcpy(units, narrow, sizeof(narrow));
#pragma unroll
  for (size_t i = 0; i < sizeof(narrow) / sizeof(Unit); ++i)
    reinterpret_cast<Unit*>(to)[i] = units[i];
}

// Copies the first n of T from shared memory, 16 bytes a lane where these lie so: then an image is
// a multiple of them, and n too.
template <typename T>
__device__ void copy_out(const Batch& batch, const T* from, int n, T* to) {
  const int lane = threadIdx.x % 32;
  if (batch.writes_vectors) {
    for (int i = lane; i < n / kWidth<T>; i += 32)
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  } else {
    for (int i = lane; i < n; i += 32) to[i] = from[i];
  }
}

// Where the sample of a position lies, and, in shared memory, its placement and its pixels.
template <int kChannels, bool kStaged>
__device__ const uint8_t* begin_sample(const Batch& batch, int64_t position, int threads,
                                       Placement& at, uint32_t* pixels) {
  const int64_t sample = batch.index[position];
  CUDA_KERNEL_ASSERT(sample >= 0 && sample < batch.samples && "augment_batch: index out of range");
  const uint8_t* const image = batch.images + sample * (int64_t{batch.pixels} * kChannels);
  if (threadIdx.x == 0) {
    const int64_t repeat = batch.repeats[position];
    CUDA_KERNEL_ASSERT(repeat >= 0 && repeat >> 32 == 0 && "augment_batch: repeat out of range");
    at = place(batch.options, batch.height, batch.width, sample, static_cast<uint32_t>(repeat));
  }
  if constexpr (kStaged) stage_image<kChannels>(batch, at, image, pixels, threads);
  __syncthreads();
  return image;
}

template <typename T, int kChannels, bool kStaged>
__global__ void __launch_bounds__(kThreads)
    augment(const __grid_constant__ Batch batch, int threads) {
  constexpr int kValues = kGroup * kChannels;
  __shared__ Placement at;
  __shared__ uint4 staged[kStaged ? kStagedPixels / 4 : 1];
  __shared__ uint4 results[kWarps][kWarpPixels * kChannels * sizeof(T) / 16];

  const int64_t position = blockIdx.x / static_cast<unsigned>(batch.tiles);
  const int first_pixel =
      static_cast<int>(blockIdx.x % static_cast<unsigned>(batch.tiles)) * kTilePixels;
  const int64_t size = int64_t{batch.pixels} * kChannels;
  uint32_t* const pixels = reinterpret_cast<uint32_t*>(staged);
  const uint8_t* const image =
      begin_sample<kChannels, kStaged>(batch, position, threads, at, pixels);

  const Reader<kChannels, kStaged> read{batch, at, image, pixels};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int end = kStaged ? batch.pixels : min(batch.pixels, first_pixel + kTilePixels);
  T* const result = reinterpret_cast<T*>(results[warp]);
  T* const out = static_cast<T*>(batch.out) + position * size;
  for (int first = first_pixel + warp * kWarpPixels; first < end; first += threads * kGroup) {
    const int own = first + lane * kGroup;
    if (own < end) {
      float values[kValues];
      augment_group<kChannels, kStaged>(batch, at, read, own, end - own, values);
      store_group(values, result + lane * kValues);
    }
    __syncwarp();
    const int n = end - first < kWarpPixels ? end - first : kWarpPixels;
    copy_out(batch, result, n * kChannels, out + int64_t{first} * kChannels);
    __syncwarp();
  }
}

// The same of a smaller result: batch.tiles are of strips, of up to so many rows of one column.
template <typename T, int kChannels, bool kStaged>
__global__ void __launch_bounds__(kThreads)
    average(const __grid_constant__ Batch batch, const __grid_constant__ Areas areas, int rows,
            int strips, int threads) {
  __shared__ Placement at;
  __shared__ uint4 staged[kStaged ? kStagedPixels / 4 : 1];

  const int64_t position = blockIdx.x / static_cast<unsigned>(batch.tiles);
  const int first = static_cast<int>(blockIdx.x % static_cast<unsigned>(batch.tiles)) * kTileStrips;
  uint32_t* const pixels = reinterpret_cast<uint32_t*>(staged);
  const uint8_t* const image =
      begin_sample<kChannels, kStaged>(batch, position, threads, at, pixels);

  const Reader<kChannels, kStaged> read{batch, at, image, pixels};
  const int end = kStaged ? strips : min(strips, first + kTileStrips);
  T* const out = static_cast<T*>(batch.out) + position * areas.height * areas.width * kChannels;
  for (int i = first + threadIdx.x; i < end; i += threads) {
    const int row = i / areas.width, column = i - row * areas.width;
    average_column<T, kChannels, kStaged>(batch, areas, at, read, row * rows,
                                          min(areas.height, (row + 1) * rows), column, out);
  }
}

template <typename T, int kChannels>
void launch_average(const Launcher& launch, Batch batch, const Areas& areas, int64_t samples) {
  // Whole areas share no rows. Others share fewer of those they have, the longer a strip is; but
  // one beyond some five rows of the image leaves too few threads.
  const int rows = areas.down.pixel == 1 ? 1 : std::max(1, 5 * areas.height / batch.height);
  const int strips = (areas.height + rows - 1) / rows * areas.width;
  if (batch.pixels > kStagedPixels) {
    batch.tiles = (strips + kTileStrips - 1) / kTileStrips;
    launch(average<T, kChannels, false>, samples * batch.tiles, kThreads, batch, areas, rows,
           strips, kThreads);
  } else {
    // Few strips are no reason for few threads to stage many pixels.
    const int warps = std::max((strips + 31) / 32, (batch.pixels + kWarpPixels - 1) / kWarpPixels);
    const int threads = 32 * std::min(warps, kWarps);
    launch(average<T, kChannels, true>, samples, threads, batch, areas, rows, strips, threads);
  }
}

template <typename T, int kChannels>
void launch_augment(const Launcher& launch, const Batch& batch, int64_t samples) {
  if (batch.pixels > kStagedPixels) {
    launch(augment<T, kChannels, false>, samples * batch.tiles, kThreads, batch, kThreads);
  } else {
    const int warps = (batch.pixels + kWarpPixels - 1) / kWarpPixels;
    const int threads = 32 * std::min(warps, kWarps);
    launch(augment<T, kChannels, true>, samples, threads, batch, threads);
  }
}

Integers integers_of(const std::optional<Tensor>& tensor, int64_t otherwise) {
  if (!tensor) return {nullptr, false, otherwise};
  return {tensor->const_data_ptr(), tensor->scalar_type() == ScalarType::Long, 0};
}

bool is_multiple(const void* at, int64_t bytes, int64_t of) {
  return reinterpret_cast<uintptr_t>(at) % of == 0 && bytes % of == 0;
}

}  // namespace

Tensor augment_cuda(Tensor images, Tensor index, std::optional<Tensor> repeats,
                    std::optional<Tensor> mean_image, std::vector<double> mean,
                    std::vector<double> std, int64_t seed, int64_t epoch, int64_t repeat, bool flip,
                    double shift, double rotation, int64_t crop, int64_t cutout, ScalarType dtype,
                    std::optional<int64_t> height_of_result,
                    std::optional<int64_t> width_of_result) {
  const Arguments arguments{mean,     std,  seed,   epoch, repeat,           flip,           shift,
                            rotation, crop, cutout, dtype, height_of_result, width_of_result};
  check_arguments(images, index, repeats, mean_image, arguments);
  const int64_t samples = index.size(0), height = images.size(1), width = images.size(2);
  const int64_t channels = images.size(3), pixels = height * width;
  const std::optional<Areas> areas = arguments.areas(height, width);
  Tensor out = torch::stable::new_empty(
      images, {samples, areas ? areas->height : height, areas ? areas->width : width, channels},
      dtype);
  if (samples == 0) return out;
  const int64_t item = dtype == ScalarType::Float ? 4 : 2;
  const int64_t tiles = pixels > kStagedPixels ? (pixels + kTilePixels - 1) / kTilePixels : 1;
  const Batch batch{.images = images.const_data_ptr<uint8_t>(),
                    .samples = images.size(0),
                    .index = integers_of(index, 0),
                    .repeats = integers_of(repeats, repeat),
                    .height = static_cast<int32_t>(height),
                    .width = static_cast<int32_t>(width),
                    .pixels = static_cast<int32_t>(pixels),
                    .tiles = static_cast<int32_t>(tiles),
                    .options = arguments.options(),
                    .numbers = arguments.numbers(),
                    .mean_image = mean_image ? mean_image->const_data_ptr<float>() : nullptr,
                    .out = out.mutable_data_ptr(),
                    .reads_words = is_multiple(images.const_data_ptr(), pixels, 4),
                    .writes_vectors =
                        is_multiple(out.const_data_ptr(), pixels * channels * item, 16)};
  const Launcher launch(images);
  for_floating(dtype, [&]<typename T>(T) {
    if constexpr (!std::is_same_v<T, double>) {
      const auto run = [&]<int kChannels>(std::integral_constant<int, kChannels>) {
        if (channels != kChannels) return;
        if (areas)
          launch_average<T, kChannels>(launch, batch, *areas, samples);
        else
          launch_augment<T, kChannels>(launch, batch, samples);
      };
      run(std::integral_constant<int, 1>{});
      run(std::integral_constant<int, 2>{});
      run(std::integral_constant<int, 3>{});
      run(std::integral_constant<int, 4>{});
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) { m.impl("augment_batch", TORCH_BOX(&augment_cuda)); }

}  // namespace cpfast::augment_batch
