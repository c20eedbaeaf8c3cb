// blend_points on the GPU: k combinations of j ends go to out. A thread takes one coordinate of kPoints
// points, for which it reads the ends once.

#include <torch/csrc/stable/library.h>

#include "points.cuh"

namespace lbgap {
namespace {

constexpr int kPoints = 8;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    blend_kernel(const double* coefficients, int64_t coefficient_stride, int64_t j, const T* ends,
                 int64_t end_stride, T* out, int64_t out_stride, int64_t k, int64_t m) {
  const int64_t blocks = (m + kThreads - 1) / kThreads;
  const int64_t groups = (k + kPoints - 1) / kPoints;
  for (int64_t at = blockIdx.x; at < groups * blocks; at += gridDim.x) {
    const int64_t first = at / blocks * kPoints;
    const int64_t i = at % blocks * kThreads + threadIdx.x;
    if (i >= m) continue;
    double sums[kPoints] = {};
    unsigned begun = 0;
    for (int64_t e = 0; e < j; ++e) {
      const double value = double(ends[e * end_stride + i]);
#pragma unroll
      for (int p = 0; p < kPoints; ++p) {
        const double c = first + p < k ? coefficients[(first + p) * coefficient_stride + e] : 0.0;
        if (c == 0.0) continue;
        sums[p] = begun >> p & 1u ? sums[p] + c * value : c * value;
        begun |= 1u << p;
      }
    }
#pragma unroll
    for (int p = 0; p < kPoints; ++p)
      if (first + p < k) out[(first + p) * out_stride + i] = static_cast<T>(sums[p]);
  }
}

void blend_points(const Tensor& coefficients, const Tensor& ends, Tensor out) {
  check_blend(coefficients, ends, out);
  const Device device(out);
  const Rows c = rows_of(coefficients, "coefficients");
  const Rows e = rows_of(ends, "ends");
  const Rows o = rows_of(out, "out");
  const int64_t blocks = (o.n + kThreads - 1) / kThreads;
  by_dtype(ends, [&](auto zero) {
    using T = decltype(zero);
    device.run(blend_kernel<T>, (o.k + kPoints - 1) / kPoints * blocks, kThreads,
               coefficients.const_data_ptr<double>(), c.stride, c.n, ends.const_data_ptr<T>(), e.stride,
               out.mutable_data_ptr<T>(), o.stride, o.k, o.n);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("blend_points", TORCH_BOX(&lbgap::blend_points)); }
