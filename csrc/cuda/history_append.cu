// history_append on the GPU: one more pair of differences, and its inner products with all pairs.
//
// A warp takes one pair, its lanes the coordinates of the block's chunk; the vectors that all warps read come
// from the first-level cache. Only the warp of the new pair writes, and only it reads those rows.

#include <torch/csrc/stable/library.h>

#include "history.cuh"

namespace lbgap {
namespace {

constexpr int64_t kUnit = 1024;
constexpr int64_t kMostChunks = 1024;
constexpr int kProducts = 4;
constexpr int kUnroll = 4;

template <typename T>
struct Pair {
  const T* x_new;
  const T* x;
  const T* g_new;
  const T* g;
  T* s;
  T* y;
  int64_t row;
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    append_kernel(Pair<T> pair, History<T> history, int64_t n, int64_t size, int64_t count, double* partial) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t chunk = blockIdx.x; chunk < count; chunk += gridDim.x) {
    const int64_t begin = chunk * size;
    const int64_t end = begin + size < n ? begin + size : n;
    for (int64_t k = threadIdx.x / kWarp; k < history.c; k += kThreads / kWarp) {
      const bool own = k == pair.row;
      const T* a = history.row(history.c + k);
      const T* b = history.row(k);
      double sums[kProducts] = {};
      for (int64_t i = begin + lane; i < end; i += kWarp * kUnroll) {
        T s[kUnroll], y[kUnroll], of_a[kUnroll], of_b[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int64_t at = i + u * kWarp;
          const bool inside = at < end;
          s[u] = inside ? pair.x_new[at] - pair.x[at] : T(0);
          y[u] = inside ? pair.g_new[at] - pair.g[at] : T(0);
          of_a[u] = !inside ? T(0) : (own ? s[u] : a[at]);
          of_b[u] = !inside ? T(0) : (own ? y[u] : b[at]);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int64_t at = i + u * kWarp;
          if (own && at < end) {
            pair.s[at] = s[u];
            pair.y[at] = y[u];
          }
          sums[0] = fma(double(of_a[u]), double(s[u]), sums[0]);
          sums[1] = fma(double(of_a[u]), double(y[u]), sums[1]);
          sums[2] = fma(double(of_b[u]), double(s[u]), sums[2]);
          sums[3] = fma(double(of_b[u]), double(y[u]), sums[3]);
        }
      }
      for (int p = 0; p < kProducts; ++p) {
        const double sum = warp_sum<Plain>(p, sums[p]);
        if (lane == 0) partial[(chunk * history.c + k) * kProducts + p] = sum;
      }
    }
  }
}

Tensor history_append(const Tensor& x_new, const Tensor& x, const Tensor& g_new, const Tensor& g, Tensor S,
                      Tensor Y, int64_t row) {
  check_append(x_new, x, g_new, g, S, Y, row);
  const Device device(x);
  const int64_t n = x.size(0);
  const int64_t c = S.size(0);
  const Chunks chunks(n, kUnit, kMostChunks);
  const Tensor partial = scratch(x, {chunks.count, c, kProducts});
  const Tensor sums = scratch(x, {c, kProducts});
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Pair<T> pair{x_new.const_data_ptr<T>(),
                       x.const_data_ptr<T>(),
                       g_new.const_data_ptr<T>(),
                       g.const_data_ptr<T>(),
                       S.mutable_data_ptr<T>() + row * rows_of(S, "S").stride,
                       Y.mutable_data_ptr<T>() + row * rows_of(Y, "Y").stride,
                       row};
    device.run(append_kernel<T>, chunks.count, kThreads, pair, history_of<T>(S, Y), n, chunks.size,
               chunks.count, data_of(partial));
  });
  fold<Plain>(device, partial, 1, chunks.count, c * kProducts, sums);
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("history_append", TORCH_BOX(&lbgap::history_append)); }
