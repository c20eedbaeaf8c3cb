// tangents_affine on the GPU: scale * t + slopes * values + shifts, channel by channel, goes to out.

#include <torch/csrc/stable/library.h>

#include "tangents.cuh"

namespace lbgap {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    affine_kernel(Affine<T> f, int64_t count, int64_t k, int64_t channels, int64_t inner) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = i / (channels * inner);
    const int64_t within = i % (channels * inner);
    const int64_t channel = within / inner;
    f(i, channel, row % k * channels + channel, row / k * channels * inner + within);
  }
}

void tangents_affine(const Tensor& t, const Tensor& scale, std::optional<Tensor> slopes,
                     std::optional<Tensor> values, std::optional<Tensor> shifts, Tensor out) {
  const Tangents n = check_affine(t, scale, slopes, values, shifts, out);
  const int64_t count = n.batch * n.k * n.size;
  if (count == 0) return;
  const Device device(t);
  const int64_t channels = t.size(2);
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    using M = Math<T>;
    const Affine<T> f{data<T>(t),      data<M>(scale),  data<M>(slopes),
                      data<M>(values), data<M>(shifts), written<T>(out)};
    device.run(affine_kernel<T>, (count + kThreads - 1) / kThreads, kThreads, f, count, n.k, channels,
               n.size / channels);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("tangents_affine", TORCH_BOX(&lbgap::tangents_affine)); }
