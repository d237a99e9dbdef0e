// augment_batch(images, index, repeats, mean_image, mean, std, seed, epoch, repeat, flip, shift,
//               rotation, crop, cutout, dtype, height, width) -> [B, height, width, C]
//
// images      uint8 [N, H, W, C], contiguous; H and W up to 16384, C from 1 to 4
// index       [B] int64 or int32 in [0, N): the samples, any of them more than once
// repeats     optional [B] int64 or int32 in [0, 2^32), else `repeat`: the how-manieth time of the
//             epoch it is that a sample is drawn
// mean_image  optional float32 [H, W, C], contiguous, in place of `mean`
// mean, std   C numbers each, or none (0 and 1), for images in [0, 1]
// height, width  of the result, at most those of the images, which they are if not given
// result      float32, bfloat16 or float16
//
// What is done to a sample, in this order:
//   crop      the image, padded by reflection with `crop` pixels on each side, is cut back to its
//             size; all (2 crop + 1)^2 places are equally likely
//   warp      a pixel at offset (r, c) from the centre (n - 1) / 2 shows what is at
//             R(theta) ((r, c) + t), bilinear, the nearest edge pixel being outside: the paper's
//             Keras pipeline. theta is uniform within +-rotation degrees, t within +-shift of the
//             height and of the width
//   flip      left to right, with probability 1/2
//   numbers   value / 255, minus mean, over std
//   cutout    a square of side `cutout` becomes 0, that is the mean; its centre is uniform among
//             the pixels, and what lies outside is clipped (DeVries and Taylor, arXiv 1708.04552)
//   size      a pixel of a smaller result is the mean over the area that it covers, where areas cut
//             pixels too: float32 sums in a fixed order. No image of the full size is written
// Without a warp every pixel is one of the image's, untouched by interpolation.
//
// The draws are a function of (seed, epoch, sample, repeat): Philox words of a key made from seed
// and epoch and of the counters (sample, repeat, 0) and (sample, repeat, 1). Each option has words
// of its own, so that it draws the same whatever the others are, on every device. Coordinates are
// integers of 2^-32 pixel, made in float64 once a sample, and the same on every device too. Values
// differ by the roundings of the last sums in float32.
//
// An index out of range is an error on the CPU, before anything is written; on CUDA it traps.
#pragma once

#include "checks.h"
#include "permutation.h"
#include "philox.h"

#include <cmath>
#include <numeric>

namespace cpfast::augment_batch {

inline constexpr int64_t kMaxSize = 16384;  // offsets within an image fit 31 bits
inline constexpr int kMaxChannels = 4;
inline constexpr double kOne = 4294967296.0;  // a pixel, in units of the coordinates

// Keeps the keys apart from those of other ops.
inline constexpr uint64_t kPurpose = 0x6175676d656e74u;

struct Options {
  uint64_t key;
  double rotation;  // in radians
  double shift;
  int32_t crop, cutout;
  bool flip;

  CPFAST_HOST_DEVICE bool warps() const { return rotation > 0 || shift > 0; }
};

// Where the pixels of one augmented sample come from.
struct Placement {
  bool flips;
  int32_t crop_row, crop_column;  // in the image, of the cropped one's corner
  int32_t hole_row, hole_column;  // the first ones; may be negative
  // Output pixel (r, c) shows (row + r row_down + c row_right, column + ...) of the cropped image:
  // the flip is in these.
  int64_t row, row_down, row_right, column, column_down, column_right;
};

// In (-1, 1), symmetric, and exact.
CPFAST_HOST_DEVICE inline double signed_unit(uint32_t word) {
  return (static_cast<double>(word) + 0.5) * 0x1p-31 - 1;
}

CPFAST_HOST_DEVICE inline int32_t below(uint32_t word, int32_t n) {
  return static_cast<int32_t>((uint64_t{word} * static_cast<uint64_t>(n)) >> 32);
}

// Every product that is added to is an fma(): whether a compiler makes one of * and + is its own
// choice, and nvcc's is not that of the CPU's.

// Of |x| <= pi, to 1e-15.
CPFAST_HOST_DEVICE inline void sin_cos(double x, double& sin, double& cos) {
  const double z = x * x;
  double s = 1, c = 1;
  for (int k = 28; k >= 2; k -= 2) {
    s = fma(-s * z, 1.0 / (k * (k + 1)), 1.0);
    c = fma(-c * z, 1.0 / (k * (k - 1)), 1.0);
  }
  sin = x * s;
  cos = c;
}

CPFAST_HOST_DEVICE inline int64_t fixed(double pixels) {
  return static_cast<int64_t>(llrint(pixels * kOne));
}

CPFAST_HOST_DEVICE inline Placement place(const Options& options, int32_t height, int32_t width,
                                          int64_t sample, uint32_t repeat) {
  const auto draw = [&](uint32_t block) {
    return philox4x32({static_cast<uint32_t>(sample),
                       static_cast<uint32_t>(static_cast<uint64_t>(sample) >> 32), repeat, block},
                      options.key);
  };
  Placement p{};
  const Words4 first = draw(0);
  p.flips = options.flip && first.w >> 31;
  if (options.warps()) {
    double sin, cos;
    sin_cos(options.rotation * signed_unit(first.x), sin, cos);
    const double centre_row = 0.5 * (height - 1), centre_column = 0.5 * (width - 1);
    const double down = fma(options.shift * signed_unit(first.y), double(height), -centre_row);
    const double right = fma(options.shift * signed_unit(first.z), double(width), -centre_column);
    p.row = fixed(fma(-sin, right, fma(cos, down, centre_row)));
    p.column = fixed(fma(cos, right, fma(sin, down, centre_column)));
    p.row_down = p.column_right = fixed(cos);
    p.column_down = fixed(sin);
    p.row_right = -p.column_down;
    if (p.flips) {
      p.row += (width - 1) * p.row_right;
      p.column += (width - 1) * p.column_right;
      p.row_right = -p.row_right;
      p.column_right = -p.column_right;
    }
  }
  if (options.crop > 0 || options.cutout > 0) {
    const Words4 second = draw(1);
    p.crop_row = below(second.x, 2 * options.crop + 1) - options.crop;
    p.crop_column = below(second.y, 2 * options.crop + 1) - options.crop;
    p.hole_row = below(second.z, height) - options.cutout / 2;
    p.hole_column = below(second.w, width) - options.cutout / 2;
  }
  return p;
}

// The pixel that a reflection shows at i, in (-n, 2n - 1).
CPFAST_HOST_DEVICE inline int32_t reflect(int32_t i, int32_t n) {
  i = i < 0 ? -i : i;
  return i < n ? i : 2 * n - 2 - i;
}

// A value times `scale`, plus `bias`; where there is a mean image, minus it times `inverse_std`.
struct Numbers {
  float scale[kMaxChannels], bias[kMaxChannels], inverse_std[kMaxChannels];
};

// The pixels of the image that one of the result covers, along one axis, in units in which the
// pixels of both are whole.
struct Span {
  int32_t first, last;
  float of_first, of_last;  // what is covered of them
  float of_others;          // all

  CPFAST_HOST_DEVICE float share(int32_t pixel) const {
    return pixel == first ? of_first : pixel == last ? of_last : of_others;
  }
};

struct Axis {
  int32_t pixel, area;  // lengths of a pixel of the image, and of one of the result

  CPFAST_HOST_DEVICE Span span(int32_t i) const {
    // Up to the product of two sizes.
    const int32_t begin = i * area, end = begin + area;
    const int32_t first = begin / pixel, last = (end - 1) / pixel;
    const int32_t first_end = (first + 1) * pixel;
    return {first, last, static_cast<float>((first_end < end ? first_end : end) - begin),
            static_cast<float>(end - last * pixel), static_cast<float>(pixel)};
  }
};

inline Axis axis_of(int64_t pixels, int64_t size) {
  const int64_t both = std::gcd(pixels, size);
  return {static_cast<int32_t>(size / both), static_cast<int32_t>(pixels / both)};
}

// Of a result that is smaller than the images.
struct Areas {
  int32_t height, width;
  Axis down, across;
  float share;  // of a unit of both axes in a pixel of the result
};

// All arguments but the tensors.
struct Arguments {
  std::vector<double> mean, std;
  int64_t seed, epoch, repeat;
  bool flip;
  double shift, rotation;
  int64_t crop, cutout;
  ScalarType dtype;
  std::optional<int64_t> height, width;

  // Or nothing, if the result is as large as the images.
  std::optional<Areas> areas(int64_t image_height, int64_t image_width) const {
    const int64_t rows = height.value_or(image_height), columns = width.value_or(image_width);
    if (rows == image_height && columns == image_width) return std::nullopt;
    const Axis down = axis_of(image_height, rows), across = axis_of(image_width, columns);
    return Areas{static_cast<int32_t>(rows), static_cast<int32_t>(columns), down, across,
                 static_cast<float>(1 / (double(down.area) * across.area))};
  }

  Options options() const {
    constexpr double kDegree = 3.14159265358979323846 / 180;
    uint64_t seeded = mix64(static_cast<uint64_t>(seed));
    seeded = mix64(seeded ^ static_cast<uint64_t>(epoch));
    return {mix64(seeded ^ kPurpose),   rotation * kDegree,           shift,
            static_cast<int32_t>(crop), static_cast<int32_t>(cutout), flip};
  }

  Numbers numbers() const {
    Numbers numbers;
    for (size_t k = 0; k < kMaxChannels; ++k) {
      const double inverse = k < std.size() ? 1 / std[k] : 1;
      numbers.scale[k] = static_cast<float>(inverse / 255);
      numbers.bias[k] = k < mean.size() ? static_cast<float>(-mean[k] * inverse) : 0;
      numbers.inverse_std[k] = static_cast<float>(inverse);
    }
    return numbers;
  }
};

inline void check_integers(const char* name, const Tensor& tensor, int64_t n, const Tensor& like) {
  const char* op = "augment_batch";
  const ScalarType dtype = tensor.scalar_type();
  check(dtype == ScalarType::Long || dtype == ScalarType::Int, op, name,
        ": expected dtype int64 or int32, got ", dtype_name(dtype));
  check_vector(op, name, tensor, n, dtype, like);
}

inline void check_arguments(const Tensor& images, const Tensor& index,
                            const std::optional<Tensor>& repeats,
                            const std::optional<Tensor>& mean_image, const Arguments& arguments) {
  const char* op = "augment_batch";
  check(images.dim() == 4, op, "images: expected shape [N, H, W, C], got ", shape_of(images));
  check(images.scalar_type() == ScalarType::Byte, op, "images: expected dtype uint8, got ",
        dtype_name(images.scalar_type()));
  check(images.is_contiguous(), op, "images: expected a contiguous tensor of shape [N, H, W, C]");
  const int64_t height = images.size(1), width = images.size(2), channels = images.size(3);
  check(height >= 1 && height <= kMaxSize && width >= 1 && width <= kMaxSize, op,
        "images: expected a height and a width of 1 to ", kMaxSize, ", got ", shape_of(images));
  check(channels >= 1 && channels <= kMaxChannels, op, "images: expected 1 to ", kMaxChannels,
        " channels, got ", shape_of(images));
  check(index.dim() == 1, op, "index: expected shape [B], got ", shape_of(index));
  check_integers("index", index, index.size(0), images);
  if (repeats) check_integers("repeat", *repeats, index.size(0), images);
  check(arguments.repeat >= 0 && arguments.repeat < int64_t{1} << 32, op,
        "repeat: expected a number in [0, 2^32), got ", arguments.repeat);

  const auto check_share = [&](const char* name, double value, double most, const char* of) {
    check(value >= 0 && value <= most, op, name, ": expected ", of, " in [0, ", most, "], got ",
          value);
  };
  check_share("shift", arguments.shift, 1, "a share of the size");
  check_share("rotation", arguments.rotation, 180, "degrees");
  check(arguments.crop >= 0 && arguments.crop < std::min(height, width), op,
        "crop: expected a padding in [0, ", std::min(height, width),
        "), below the height and the width, got ", arguments.crop);
  check(arguments.cutout >= 0 && arguments.cutout <= std::max(height, width), op,
        "cutout: expected a side in [0, ", std::max(height, width), "], got ", arguments.cutout);

  const auto check_channels = [&](const char* name, const std::vector<double>& values) {
    check(values.empty() || static_cast<int64_t>(values.size()) == channels, op, name,
          ": expected ", channels, " numbers, one a channel, got ", values.size());
  };
  check_channels("mean", arguments.mean);
  for (size_t k = 0; k < arguments.mean.size(); ++k)
    check(std::isfinite(static_cast<float>(arguments.mean[k])), op, "mean[", k,
          "]: expected a finite number, got ", arguments.mean[k],
          std::isfinite(arguments.mean[k]) ? ", infinite in float32" : "");
  check_channels("std", arguments.std);
  for (size_t k = 0; k < arguments.std.size(); ++k)
    check(arguments.std[k] > 0 && std::isnormal(static_cast<float>(arguments.std[k])), op, "std[",
          k, "]: expected a positive number, got ", arguments.std[k],
          arguments.std[k] > 0 ? ", out of float32's normal range" : "");
  // The numbers that the kernels multiply by and add.
  const Numbers numbers = arguments.numbers();
  for (int64_t k = 0; k < channels; ++k)
    check(std::isfinite(numbers.scale[k]) && std::isfinite(numbers.bias[k]), op,
          "std: ", "1 / std and mean / std leave float32 in channel ", k);
  if (mean_image) {
    check(arguments.mean.empty(), op, "mean: expected numbers or an image, got both");
    check(mean_image->dim() == 3 && mean_image->size(0) == height && mean_image->size(1) == width &&
              mean_image->size(2) == channels,
          op, "mean: expected shape [", height, ", ", width, ", ", channels, "], got ",
          shape_of(*mean_image));
    check(mean_image->scalar_type() == ScalarType::Float, op, "mean: expected dtype float32, got ",
          dtype_name(mean_image->scalar_type()));
    check(same_device(*mean_image, images), op, "mean: expected device ", device_of(images),
          ", got ", device_of(*mean_image));
    check(mean_image->is_contiguous(), op, "mean: expected a contiguous tensor");
  }
  const ScalarType dtype = arguments.dtype;
  check(is_floating(dtype) && dtype != ScalarType::Double, op,
        "dtype: expected float32, bfloat16 or float16, got ", dtype_name(dtype));
  const int64_t rows = arguments.height.value_or(height);
  const int64_t columns = arguments.width.value_or(width);
  check(rows >= 1 && rows <= height && columns >= 1 && columns <= width, op, "size: expected 1 to ",
        height, ", 1 to ", width, ", got ", rows, ", ", columns);
}

}  // namespace cpfast::augment_batch
