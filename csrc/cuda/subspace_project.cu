// subspace_project on the GPU: A'g. A block takes kRows rows and kColumns columns of A, kPanel columns at a
// time: a thread adds up its rows, the block the threads, and fold() the blocks.

#include <torch/csrc/stable/library.h>

#include "subspace.cuh"

namespace lbgap {
namespace {

constexpr int64_t kRows = 8192;
constexpr int64_t kColumns = 32;  // one word of signs

// The vectors, (k, n).
template <typename T>
struct Vectors {
  const T* data;
  int64_t stride;
  int64_t k;
  int64_t n;
};

// Columns that are added up together, and vectors.
template <typename D>
constexpr int kPanel = kSigns<D> ? 32 : 4;
template <typename D>
constexpr int kMost = kSigns<D> ? 1 : kPoints;

// Adds rows [begin, end) of this thread to sums[column - first][vector].
template <typename D, typename T, int K>
__device__ void add_rows(const Stream& s, const Vectors<T>& g, int64_t vector, int64_t column, int64_t begin,
                         int64_t end, double (&sums)[kPanel<D>][K]) {
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const uint64_t row = s.first + static_cast<uint64_t>(i);
    double values[K];
#pragma unroll
    for (int c = 0; c < K; ++c)
      values[c] = vector + c < g.k ? double(g.data[(vector + c) * g.stride + i]) : 0.0;
    if constexpr (kSigns<D>) {
      const uint32_t w =
          draw_word(s, row, static_cast<uint32_t>(column / 128), static_cast<int>(column % 128 / 32));
#pragma unroll
      for (int b = 0; b < kPanel<D>; ++b)
#pragma unroll
        for (int c = 0; c < K; ++c) sums[b][c] += D::times(w, b, values[c]);
    } else {
      float e[4];
      draw_panel<D>(s, row, static_cast<uint32_t>(column / 4), e);
#pragma unroll
      for (int b = 0; b < 4; ++b)
#pragma unroll
        for (int c = 0; c < K; ++c) sums[b][c] += double(e[b]) * values[c];
    }
  }
}

template <typename D, typename T, int K>
__global__ void __launch_bounds__(kThreads)
    project_kernel(Stream s, Vectors<T> g, int64_t p, int64_t blocks, int64_t panels, double* partial) {
  for (int64_t at = blockIdx.x; at < blocks * panels; at += gridDim.x) {
    const int64_t block = at / panels;
    const int64_t begin = block * kRows;
    const int64_t end = begin + kRows < g.n ? begin + kRows : g.n;
    const int64_t last = (at % panels + 1) * kColumns < p ? (at % panels + 1) * kColumns : p;
    for (int64_t vector = 0; vector < g.k; vector += K)
      for (int64_t column = at % panels * kColumns; column < last; column += kPanel<D>) {
        double sums[kPanel<D>][K] = {};
        add_rows<D, T, K>(s, g, vector, column, begin, end, sums);
#pragma unroll
        for (int b = 0; b < kPanel<D>; ++b)
#pragma unroll
          for (int c = 0; c < K; ++c) {
            const double sum = block_sum<Plain>(0, sums[b][c]);
            if (threadIdx.x == 0 && column + b < p && vector + c < g.k)
              partial[(block * g.k + vector + c) * p + column + b] = sum;
          }
      }
  }
}

Tensor subspace_project(const Tensor& g, int64_t p, int64_t distribution, int64_t seed, int64_t stream,
                        int64_t first) {
  const Rows rows = rows_of(g, "g");
  check_matrix(p, distribution, stream, first);
  check_floating(g, "g");
  const Device device(g);
  const int64_t blocks = (rows.n + kRows - 1) / kRows;
  const int64_t panels = (p + kColumns - 1) / kColumns;
  const Tensor result = g.dim() == 2 ? scratch(g, {rows.k, p}) : scratch(g, {p});
  const Tensor partial = scratch(g, {blocks, rows.k * p});
  if (rows.k == 0) return result;
  by_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    by_distribution(distribution, [&](auto entries) {
      using D = decltype(entries);
      const Vectors<T> vectors{g.const_data_ptr<T>(), rows.stride, rows.k, rows.n};
      device.run(rows.k == 1 ? project_kernel<D, T, 1> : project_kernel<D, T, kMost<D>>, blocks * panels,
                 kThreads, stream_of(seed, stream, first), vectors, p, blocks, panels, data_of(partial));
    });
  });
  fold<Plain>(device, partial, 1, blocks, rows.k * p, result);
  return result;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("subspace_project", TORCH_BOX(&lbgap::subspace_project)); }
