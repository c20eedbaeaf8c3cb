// subspace_gram on the GPU: A'A. A block multiplies kTile columns with kTile columns over a chunk of rows, of
// which kSlab at a time are drawn into shared memory; a thread has 4 x 4 of the products. A product of two
// entries is exact in float64.

#include <torch/csrc/stable/library.h>

#include "subspace.cuh"

namespace lbgap {
namespace {

constexpr int kTile = 64;
constexpr int kSlab = 32;
constexpr int kSide = 4;
constexpr int64_t kUnit = 2048;
constexpr int64_t kBlocks = 512;  // about, of a grid
static_assert(kTile / kSide * (kTile / kSide) == kThreads);

// Rows [row, row + kSlab) of kTile columns; zeros from row `end` on.
template <typename D>
__device__ void fill(const Stream& s, int64_t row, int64_t end, int64_t column, float (*slab)[kTile]) {
  if constexpr (kSigns<D>) {
    constexpr int kWords = kTile / 32;
    for (int at = threadIdx.x; at < kSlab * kWords; at += kThreads) {
      const int r = at / kWords;
      const int64_t j = column + at % kWords * 32;
      const bool inside = row + r < end;
      const uint32_t w = draw_word(s, s.first + static_cast<uint64_t>(row + r),
                                   static_cast<uint32_t>(j / 128), static_cast<int>(j % 128 / 32));
      for (int b = 0; b < 32; ++b) slab[r][at % kWords * 32 + b] = inside ? D::entry(w, b) : 0.0f;
    }
  } else {
    constexpr int kPanels = kTile / 4;
    for (int at = threadIdx.x; at < kSlab * kPanels; at += kThreads) {
      const int r = at / kPanels;
      const bool inside = row + r < end;
      float e[4];
      draw_panel<D>(s, s.first + static_cast<uint64_t>(row + r),
                    static_cast<uint32_t>(column / 4 + at % kPanels), e);
#pragma unroll
      for (int b = 0; b < 4; ++b) slab[r][at % kPanels * 4 + b] = inside ? e[b] : 0.0f;
    }
  }
}

template <typename D>
__global__ void __launch_bounds__(kThreads)
    gram_kernel(Stream s, int64_t n, int64_t p, int64_t size, int64_t count, int64_t pairs, double* partial) {
  __shared__ float left[kSlab][kTile];
  __shared__ float right[kSlab][kTile];
  const int ty = threadIdx.x / (kTile / kSide) * kSide;
  const int tx = threadIdx.x % (kTile / kSide) * kSide;
  for (int64_t at = blockIdx.x; at < count * pairs; at += gridDim.x) {
    const int64_t chunk = at / pairs;
    // Tile i with j <= i, counted row by row: i (i + 1) / 2 pairs stand before row i.
    int64_t i = 0;
    while ((i + 1) * (i + 2) / 2 <= at % pairs) ++i;
    const int64_t j = at % pairs - i * (i + 1) / 2;
    const int64_t end = (chunk + 1) * size < n ? (chunk + 1) * size : n;
    double sums[kSide][kSide] = {};
    for (int64_t row = chunk * size; row < end; row += kSlab) {
      fill<D>(s, row, end, i * kTile, left);
      if (i != j) fill<D>(s, row, end, j * kTile, right);
      __syncthreads();
      const auto* other = i == j ? left : right;
      for (int r = 0; r < kSlab; ++r)
#pragma unroll
        for (int a = 0; a < kSide; ++a)
#pragma unroll
          for (int b = 0; b < kSide; ++b)
            sums[a][b] = fma(double(left[r][ty + a]), double(other[r][tx + b]), sums[a][b]);
      __syncthreads();  // the slabs are drawn anew
    }
#pragma unroll
    for (int a = 0; a < kSide; ++a)
#pragma unroll
      for (int b = 0; b < kSide; ++b) {
        const int64_t row = i * kTile + ty + a;
        const int64_t column = j * kTile + tx + b;
        if (row < p && column < p && (i != j || column <= row)) {
          partial[(chunk * p + row) * p + column] = sums[a][b];
          partial[(chunk * p + column) * p + row] = sums[a][b];
        }
      }
  }
}

Tensor subspace_gram(const Tensor& like, int64_t n, int64_t p, int64_t distribution, int64_t seed,
                     int64_t stream, int64_t first) {
  check_matrix(p, distribution, stream, first);
  STD_TORCH_CHECK(n >= 0, "n must not be negative, got ", n);
  const Device device(like);
  const int64_t tiles = (p + kTile - 1) / kTile;
  const int64_t pairs = tiles * (tiles + 1) / 2;
  const Chunks chunks(n, kUnit, std::max<int64_t>(kBlocks / std::max<int64_t>(pairs, 1), 1));
  const Tensor partial = scratch(like, {chunks.count, p, p});
  const Tensor gram = scratch(like, {p, p});
  by_distribution(distribution, [&](auto entries) {
    device.run(gram_kernel<decltype(entries)>, chunks.count * pairs, kThreads, stream_of(seed, stream, first),
               n, p, chunks.size, chunks.count, pairs, data_of(partial));
  });
  fold<Plain>(device, partial, 1, chunks.count, p * p, gram);
  return gram;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("subspace_gram", TORCH_BOX(&lbgap::subspace_gram)); }
