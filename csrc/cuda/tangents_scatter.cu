// tangents_scatter on the GPU: each element of out is the sum of r over the windows whose largest element it
// is. A thread looks for these, so that no two of them add to one number, and the order of the sum is fixed.

#include <torch/csrc/stable/library.h>

#include "tangents.cuh"

namespace lbgap {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const T* r, const int64_t* places, T* out, int64_t count, Pooled n, Windows windows) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t plane = i / n.before;
    out[i] = windows.sum(r + plane * n.after, places + n.shared(plane) * n.after, i % n.before);
  }
}

void tangents_scatter(const Tensor& r, const Tensor& places, std::vector<int64_t> kernel,
                      std::vector<int64_t> stride, std::vector<int64_t> padding,
                      std::vector<int64_t> dilation, Tensor out) {
  const Pooled n = check_pooled(out, r, places, out);
  const Windows windows = check_windows(out, r, kernel, stride, padding, dilation);
  const Device device(r);
  const int64_t count = out.numel();
  by_tangent(r, [&](auto zero) {
    using T = decltype(zero);
    device.run(scatter_kernel<T>, (count + kThreads - 1) / kThreads, kThreads, data<T>(r),
               data<int64_t>(places), written<T>(out), count, n, windows);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("tangents_scatter", TORCH_BOX(&lbgap::tangents_scatter)); }
