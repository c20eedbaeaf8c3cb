// subspace_apply on the GPU: centre + A z goes to out. A thread takes a row of A, and kPoints points at a
// time.

#include <torch/csrc/stable/library.h>

#include "subspace.cuh"

namespace lbgap {
namespace {

// The coordinates of all points, (k, p).
struct Coordinates {
  const double* data;
  int64_t stride;
  int64_t k;
  int64_t p;
};

// sums[c] = the sum of A_ij z_cj over j, in rising order, for points first .. first + K - 1 (the last again
// where there are fewer).
template <typename D, int K>
__device__ void multiply(const Stream& s, uint64_t row, const Coordinates& z, int64_t first,
                         double (&sums)[K]) {
  const double* at[K];
#pragma unroll
  for (int c = 0; c < K; ++c) {
    at[c] = z.data + (first + c < z.k ? first + c : z.k - 1) * z.stride;
    sums[c] = 0.0;
  }
  if constexpr (kSigns<D>) {
    for (int64_t j = 0; j < z.p; j += 32) {
      const uint32_t w = draw_word(s, row, static_cast<uint32_t>(j / 128), static_cast<int>(j % 128 / 32));
      const int columns = static_cast<int>(z.p - j < 32 ? z.p - j : 32);
#pragma unroll 8
      for (int b = 0; b < columns; ++b)
#pragma unroll
        for (int c = 0; c < K; ++c) sums[c] += D::times(w, b, at[c][j + b]);
    }
  } else {
    for (int64_t j = 0; j < z.p; j += 4) {
      float e[4];
      draw_panel<D>(s, row, static_cast<uint32_t>(j / 4), e);
#pragma unroll
      for (int b = 0; b < 4; ++b)
        if (j + b < z.p)
#pragma unroll
          for (int c = 0; c < K; ++c) sums[c] += double(e[b]) * at[c][j + b];
    }
  }
}

template <typename D, typename T, int K>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(Stream s, const T* centre, Coordinates z, T* out, int64_t out_stride, int64_t n) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += step) {
    const double x = double(centre[i]);  // read first: row 0 of out may be the centre itself
    for (int64_t first = 0; first < z.k; first += K) {
      double sums[K];
      multiply<D>(s, s.first + static_cast<uint64_t>(i), z, first, sums);
#pragma unroll
      for (int c = 0; c < K; ++c)
        if (first + c < z.k) out[(first + c) * out_stride + i] = static_cast<T>(x + sums[c]);
    }
  }
}

void subspace_apply(const Tensor& centre, const Tensor& z, int64_t distribution, int64_t seed, int64_t stream,
                    int64_t first, Tensor out) {
  check_apply(centre, z, out);
  const Rows coordinates = rows_of(z, "z");
  const Rows rows = rows_of(out, "out");
  check_matrix(coordinates.n, distribution, stream, first);
  if (rows.k == 0) return;
  const Device device(out);
  const Coordinates points{z.const_data_ptr<double>(), coordinates.stride, rows.k, coordinates.n};
  by_dtype(out, [&](auto zero) {
    using T = decltype(zero);
    by_distribution(distribution, [&](auto entries) {
      using D = decltype(entries);
      device.run(rows.k == 1 ? apply_kernel<D, T, 1> : apply_kernel<D, T, kPoints>,
                 (rows.n + kThreads - 1) / kThreads, kThreads, stream_of(seed, stream, first),
                 centre.const_data_ptr<T>(), points, out.mutable_data_ptr<T>(), rows.stride, rows.n);
    });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("subspace_apply", TORCH_BOX(&lbgap::subspace_apply)); }
