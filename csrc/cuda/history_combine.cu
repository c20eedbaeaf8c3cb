// history_combine on the GPU: the subspace step, added to the Cauchy point where it is free.
//
// Near a maximum nearly all coordinates are on their bounds, and a warp without a free one reads no row of
// the history.

#include <torch/csrc/stable/library.h>

#include "history.cuh"

namespace lbgap {
namespace {

constexpr int kRows = 8;  // of the history, under way together

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(Combine<T> f, T* y, const T* x, const T* g, History<T> history, const double* q,
                   const T* lower, const T* upper, int64_t n) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += step) {
    const T now = y[i];
    const T low = lower[i];
    const T high = upper[i];
    if (!f.bounds.free(now, low, high)) continue;
    double h = f.gradient(now, x[i], g[i]);
    for (int64_t k = 0; k < 2 * history.c; k += kRows) {
      T values[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) values[r] = k + r < 2 * history.c ? history.row(k + r)[i] : T(0);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (k + r < 2 * history.c) h += q[k + r] * double(values[r]);
    }
    y[i] = f(now, h, low, high);
  }
}

void history_combine(Tensor y, const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y,
                     const Tensor& q, double theta, const Tensor& lower, const Tensor& upper, double absolute,
                     double relative, bool project) {
  check_model(y, x, g, S, Y, lower, upper, absolute, relative);
  const double* weights = small_matrix(q, 2 * S.size(0), "q");
  const Device device(x);
  const int64_t n = x.size(0);
  const Tensor on_device = upload(device, x, weights, q.numel());
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Combine<T> f{bounds_of<T>(absolute, relative), theta, project};
    device.run(combine_kernel<T>, (n + kThreads - 1) / kThreads, kThreads, f, y.mutable_data_ptr<T>(),
               x.const_data_ptr<T>(), g.const_data_ptr<T>(), history_of<T>(S, Y), data_of(on_device),
               lower.const_data_ptr<T>(), upper.const_data_ptr<T>(), n);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("history_combine", TORCH_BOX(&lbgap::history_combine)); }
