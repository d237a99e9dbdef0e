#include "../augment_batch.h"

#include "../dispatch.h"
#include "isa.h"

#ifdef CPFAST_X86_CLONES
#include <immintrin.h>
#endif

namespace cpfast::augment_batch {
namespace {

struct Batch {
  const uint8_t* images;
  int64_t samples_before_end;  // behind which there are kOverread bytes of others
  int64_t height, width, channels;
  const int64_t* samples;   // [B]
  const uint32_t* repeats;  // [B]
  Options options;
  int64_t band;        // rows that are scaled at once
  const float* scale;  // [band, width, channels]
  const float* bias;   // the same, or that of each pixel
  bool bias_of_image;
  const Areas* areas;   // or null, where the result is as large as the images
  const Span* columns;  // of a smaller one, [its width]
  void* out;
  ScalarType dtype;
};

// Of one thread.
struct Scratch {
  uint8_t* image;
  float* values;  // a band
  // For smaller results:
  uint8_t* flipped;  // a band
  float* sums;       // of a row
  float* means;      // the rows that end within a band
};

#define CPFAST_KERNEL "augment_batch_kernel.h"
#include "foreach_isa.h"

// warp_row may read so many bytes past the end of an image.
constexpr int64_t kOverread = 7;

// A vector may read so much past the end of what it needs.
constexpr int64_t kSlack = 64;

// Rows are scaled in bands, for the rows of small images are shorter than a vector.
constexpr int64_t kPixelsOfBand = 256;

// values[i] of int64 or int32, in [0, end).
template <typename Number>
std::vector<Number> checked_numbers(const char* name, const Tensor& values, int64_t end) {
  std::vector<Number> numbers(values.size(0));
  const bool wide = values.scalar_type() == ScalarType::Long;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const int64_t value =
        wide ? values.const_data_ptr<int64_t>()[i] : values.const_data_ptr<int32_t>()[i];
    check(value >= 0 && value < end, "augment_batch", name, "[", i, "]: expected a number in [0, ",
          end, "), got ", value);
    numbers[i] = static_cast<Number>(value);
  }
  return numbers;
}

// Work of some 20 us, worth a thread.
constexpr int64_t kPixelsOfTask = 8192;

}  // namespace

Tensor augment_cpu(Tensor images, Tensor index, std::optional<Tensor> repeats,
                   std::optional<Tensor> mean_image, std::vector<double> mean,
                   std::vector<double> std, int64_t seed, int64_t epoch, int64_t repeat, bool flip,
                   double shift, double rotation, int64_t crop, int64_t cutout, ScalarType dtype,
                   std::optional<int64_t> height_of_result,
                   std::optional<int64_t> width_of_result) {
  const Arguments arguments{mean,     std,  seed,   epoch, repeat,           flip,           shift,
                            rotation, crop, cutout, dtype, height_of_result, width_of_result};
  check_arguments(images, index, repeats, mean_image, arguments);
  const int64_t batch_size = index.size(0), height = images.size(1), width = images.size(2);
  const int64_t channels = images.size(3), line = width * channels;
  const auto samples = checked_numbers<int64_t>("index", index, images.size(0));
  const auto times = repeats ? checked_numbers<uint32_t>("repeat", *repeats, int64_t{1} << 32)
                             : std::vector<uint32_t>(batch_size, static_cast<uint32_t>(repeat));
  const std::optional<Areas> areas = arguments.areas(height, width);
  const int64_t out_height = areas ? areas->height : height;
  const int64_t out_width = areas ? areas->width : width;
  Tensor out =
      torch::stable::new_empty(images, {batch_size, out_height, out_width, channels}, dtype);
  if (batch_size == 0) return out;

  const int64_t band = std::clamp<int64_t>(kPixelsOfBand / width, 1, height);
  const Numbers numbers = arguments.numbers();
  std::vector<float> scale(band * line + kSlack);
  std::vector<float> bias((mean_image ? height : band) * line + kSlack);
  for (int64_t i = 0; i < band * line; ++i) scale[i] = numbers.scale[i % channels];
  const float* pixel_mean = mean_image ? mean_image->const_data_ptr<float>() : nullptr;
  for (int64_t i = 0; i < static_cast<int64_t>(bias.size()) - kSlack; ++i)
    bias[i] = pixel_mean ? -pixel_mean[i] * numbers.inverse_std[i % channels]
                         : numbers.bias[i % channels];
  std::vector<Span> columns(areas ? out_width : 0);
  for (size_t i = 0; i < columns.size(); ++i)
    columns[i] = areas->across.span(static_cast<int32_t>(i));
  const Batch batch{.images = images.const_data_ptr<uint8_t>(),
                    .samples_before_end =
                        images.size(0) - (kOverread + height * line - 1) / (height * line),
                    .height = height,
                    .width = width,
                    .channels = channels,
                    .samples = samples.data(),
                    .repeats = times.data(),
                    .options = arguments.options(),
                    .band = band,
                    .scale = scale.data(),
                    .bias = bias.data(),
                    .bias_of_image = mean_image.has_value(),
                    .areas = areas ? &*areas : nullptr,
                    .columns = columns.data(),
                    .out = out.mutable_data_ptr(),
                    .dtype = dtype};
  const int64_t grain = std::max<int64_t>(1, kPixelsOfTask / (height * width));
  torch::stable::parallel_for(0, batch_size, grain, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> image(height * line + kSlack), flipped(areas ? band * line : 0);
    std::vector<float> values(band * line + kSlack), sums(areas ? line + kSlack : 0);
    std::vector<float> means(areas ? band * out_width * channels + kSlack : 0);
    CPFAST_DISPATCH(augment)(
        batch, begin, end,
        {image.data(), values.data(), flipped.data(), sums.data(), means.data()});
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CPU, m) { m.impl("augment_batch", TORCH_BOX(&augment_cpu)); }

}  // namespace cpfast::augment_batch
