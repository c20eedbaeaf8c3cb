// tangents_softmax on the GPU: weight * (p * t - p <p, t>) goes to out, a warp for each row.

#include <torch/csrc/stable/library.h>

#include "reduce.cuh"
#include "tangents.cuh"

namespace lbgap {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(const T* t, const Math<T>* p, const Math<T>* weights, T* out, int64_t rows, int64_t k,
                   int64_t classes) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kWarp);
  for (int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; row < rows; row += warps) {
    const T* from = t + row * classes;
    const Math<T>* q = p + row / k * classes;
    T* to = out + row * classes;
    double sum = 0.0;
    for (int64_t c = lane; c < classes; c += kWarp) sum += double(q[c]) * double(widen(from[c]));
    sum = __shfl_sync(kFull, warp_sum<Plain>(0, sum), 0);
    const auto along = static_cast<Math<T>>(sum);
    const Math<T> weight = weights == nullptr ? Math<T>(1) : weights[row / k];
    for (int64_t c = lane; c < classes; c += kWarp)
      to[c] = narrow<T>(centred(widen(from[c]), q[c], along, weight));
  }
}

void tangents_softmax(const Tensor& t, const Tensor& p, std::optional<Tensor> weights, Tensor out) {
  const Tangents n = check_softmax(t, p, weights, out);
  if (n.size == 0) return;
  const Device device(t);
  const int64_t rows = n.batch * n.k;
  constexpr int64_t kRows = kThreads / kWarp;
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    device.run(softmax_kernel<T>, (rows + kRows - 1) / kRows, kThreads, data<T>(t), data<Math<T>>(p),
               data<Math<T>>(weights), written<T>(out), rows, n.k, n.size);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("tangents_softmax", TORCH_BOX(&lbgap::tangents_softmax)); }
