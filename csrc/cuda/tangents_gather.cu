// tangents_gather on the GPU: the elements of t at the places of the largest go to out.

#include <torch/csrc/stable/library.h>

#include "tangents.cuh"

namespace lbgap {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const T* t, const int64_t* places, T* out, int64_t count, Pooled n) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t plane = i / n.after;
    out[i] = picked(t + plane * n.before, places[n.shared(plane) * n.after + i % n.after], n.before);
  }
}

void tangents_gather(const Tensor& t, const Tensor& places, Tensor out) {
  const Pooled n = check_pooled(t, out, places, out);
  const Device device(t);
  const int64_t count = out.numel();
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    device.run(gather_kernel<T>, (count + kThreads - 1) / kThreads, kThreads, data<T>(t),
               data<int64_t>(places), written<T>(out), count, n);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("tangents_gather", TORCH_BOX(&lbgap::tangents_gather)); }
