// What every launcher does: makes the device of its tensors current, takes torch's stream there,
// and asks after each kernel whether it could be launched.
#pragma once

#include "../checks.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>

namespace cpfast {

inline constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;  // of a grid, on every device

// While a stream is captured, its thread may not do what synchronises or allocates on the way, as
// loading a kernel can (CUDA does that lazily: at its first launch, or at a query of its
// occupancy). None of that is to be replayed, so here it may. Kernels are captured as ever.
class UnhinderedByCapture {
 public:
  UnhinderedByCapture() { STD_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~UnhinderedByCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  UnhinderedByCapture(const UnhinderedByCapture&) = delete;
  UnhinderedByCapture& operator=(const UnhinderedByCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then that of before
};

class Launcher {
 public:
  // Of what is read twice, so much may be under way at a time: it must stay in L2, which has 50 MB
  // on an H100.
  static constexpr int64_t kStreamedBytes = 32 << 20;

  explicit Launcher(const Tensor& on) : guard_(on.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // A grid of no blocks, which CUDA refuses, is no work. One of 2^32 would be launched as one of
  // none.
  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads,
                  const Arguments&... arguments) const {
    if (blocks == 0) return;
    check(blocks <= kMaxBlocks, "cuda", "expected work for at most ", kMaxBlocks, " blocks, got ",
          blocks, "; use smaller batches");
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // All blocks run at once, and may wait for each other. Returns false, and launches nothing, where
  // the device refuses so many: a sanitizer or a profiler may have put its code into the kernel
  // since resident_blocks() was asked, and other processes may have a share of the device.
  template <typename... Parameters>
  bool cooperative(void (*kernel)(Parameters...), int64_t blocks, int threads,
                   const std::type_identity_t<Parameters>&... arguments) const {
    void* pointers[] = {const_cast<std::remove_const_t<Parameters>*>(&arguments)...};
    const cudaError_t error =
        cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel),
                                    static_cast<unsigned>(blocks), threads, pointers, 0, stream_);
    if (error == cudaErrorCooperativeLaunchTooLarge && blocks > 1) {
      cudaGetLastError();  // or the next launch check would find it
      return false;
    }
    STD_CUDA_CHECK(error);
    return true;
  }

  void zero(void* at, int64_t bytes) const {
    STD_CUDA_CHECK(cudaMemsetAsync(at, 0, static_cast<size_t>(bytes), stream_));
  }

  // How many blocks of a persistent kernel fill the device. Asked once: it costs as a launch does.
  // One a multiprocessor where not even that fits: the launch then says so, and none is skipped.
  template <typename... Parameters>
  int64_t resident_blocks(void (*kernel)(Parameters...), int threads) const {
    static std::mutex mutex;
    static std::map<std::tuple<const void*, int, int>, int64_t> known;
    const std::lock_guard lock(mutex);
    int device = 0, multiprocessors = 0, blocks = 0;
    STD_CUDA_CHECK(cudaGetDevice(&device));
    const std::tuple key(reinterpret_cast<const void*>(kernel), threads, device);
    if (const auto found = known.find(key); found != known.end()) return found->second;
    STD_CUDA_CHECK(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0));
    return known[key] = std::max<int64_t>(blocks, 1) * multiprocessors;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  UnhinderedByCapture unhindered_;
  cudaStream_t stream_;
};

}  // namespace cpfast
