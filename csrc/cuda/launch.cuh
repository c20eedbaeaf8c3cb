// Who launches on the GPU: the right device, the current stream, the grid, the check. Nothing else knows
// CUDA's runtime.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <initializer_list>

#include "../checks.h"

namespace lbgap {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kFull = 0xffffffffu;   // all lanes of a warp
constexpr int64_t kMostBlocks = 1 << 16;  // of a grid: kernels go on from block to block

// Makes the device of a tensor the current one for as long as it lives, and launches on that device's current
// stream.
class Device {
 public:
  explicit Device(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Runs a kernel on at most kMostBlocks of `blocks` blocks; on nothing where there are none.
  template <typename... Parameters, typename... Arguments>
  void run(void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    if (blocks == 0) return;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMostBlocks)));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream_;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// A float64 tensor of any content on the device of `like`; what is freed is reused in the order of the
// stream.
inline Tensor scratch(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, {shape.begin(), shape.size()},
                                  std::make_optional(ScalarType::Double));
}

inline double* data_of(const Tensor& t) { return t.mutable_data_ptr<double>(); }

}  // namespace lbgap
