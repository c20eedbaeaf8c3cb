// subspace_gram on the CPU: A'A, kRows rows of A at a time.
//
// A product of two entries is exact in float64. Row r of a slab adds to lane r % 8, the lanes are folded and
// the slabs added in order, each entry of the result by one thread: the bits do not depend on the number of
// threads.

#include <torch/csrc/stable/library.h>

#include "subspace.h"

namespace lbgap {
namespace {

constexpr int64_t kRows = 2048;
constexpr int64_t kWide = 8;
using Wide = double __attribute__((vector_size(kWide * sizeof(double))));
using Narrow = float __attribute__((vector_size(kWide * sizeof(float))));

// kTile rows of one panel into the slab, column by column; zeros from row `count` on.
template <typename D>
LBGAP_INLINE void tile(const Stream& s, uint64_t row, int64_t panels, int64_t count, float* slab) {
  alignas(64) Tile<D> a;
  for (int64_t panel = 0; panel < panels; ++panel) {
    a.fill(s, row, panel);
    for (int64_t j = 0; j < kPanel; ++j)
      for (int64_t r = 0; r < kTile; ++r)
        slab[(panel * kPanel + j) * kRows + r] = r < count ? a.entry[j][r] : 0.0f;
  }
}

LBGAP_CLONES void tile_normal(const Stream& s, uint64_t row, int64_t panels, int64_t count, float* slab) {
  tile<Normal>(s, row, panels, count, slab);
}

LBGAP_CLONES void tile_uniform(const Stream& s, uint64_t row, int64_t panels, int64_t count, float* slab) {
  tile<Uniform>(s, row, panels, count, slab);
}

LBGAP_CLONES void tile_rademacher(const Stream& s, uint64_t row, int64_t panels, int64_t count, float* slab) {
  tile<Rademacher>(s, row, panels, count, slab);
}

// sums[i][j] = the inner product of column i of one panel with column j of another.
LBGAP_CLONES void products(const float* a, const float* b, int64_t rows, double (*sums)[kPanel]) {
  Wide lanes[kPanel][kPanel] = {};
  for (int64_t r = 0; r < rows; r += kWide) {
    Wide right[kPanel];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kPanel; ++j) {
      Narrow e;
      __builtin_memcpy(&e, b + j * kRows + r, sizeof e);
      right[j] = __builtin_convertvector(e, Wide);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPanel; ++i) {
      Narrow e;
      __builtin_memcpy(&e, a + i * kRows + r, sizeof e);
      const Wide left = __builtin_convertvector(e, Wide);
#pragma GCC unroll 4
      for (int64_t j = 0; j < kPanel; ++j) lanes[i][j] += left * right[j];
    }
  }
  for (int64_t i = 0; i < kPanel; ++i)
    for (int64_t j = 0; j < kPanel; ++j) {
      double lane[kWide];
      __builtin_memcpy(lane, &lanes[i][j], sizeof lane);
      fold(lane, kWide, 1);
      sums[i][j] = lane[0];
    }
}

Tensor subspace_gram(const Tensor& like, int64_t n, int64_t p, int64_t distribution, int64_t seed,
                     int64_t stream, int64_t first) {
  check_matrix(p, distribution, stream, first);
  STD_TORCH_CHECK(n >= 0, "n must not be negative, got ", n);
  const auto run = distribution == kNormal    ? tile_normal
                   : distribution == kUniform ? tile_uniform
                                              : tile_rademacher;
  const Stream s = stream_of(seed, stream, first);
  const int64_t panels = panels_of(p);
  Tensor result = zeros(like, {p, p});
  double* gram = result.mutable_data_ptr<double>();
  std::vector<float> slab(static_cast<size_t>(panels * kPanel * kRows));

  for (int64_t begin = 0; begin < n && p > 0; begin += kRows) {
    const int64_t rows = std::min(kRows, n - begin);
    const int64_t tiles = (rows + kTile - 1) / kTile;
    torch::stable::parallel_for(0, tiles, 1, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t)
        run(s, s.first + static_cast<uint64_t>(begin + t * kTile), panels, rows - t * kTile,
            slab.data() + t * kTile);
    });
    // Panels i >= j, counted row by row: i (i + 1) / 2 pairs stand before row i.
    torch::stable::parallel_for(0, panels * (panels + 1) / 2, kGrain, [&](int64_t from, int64_t to) {
      int64_t i = 0;
      while ((i + 1) * (i + 2) / 2 <= from) ++i;
      int64_t j = from - i * (i + 1) / 2;
      for (int64_t pair = from; pair < to; ++pair) {
        double sums[kPanel][kPanel];
        products(slab.data() + i * kPanel * kRows, slab.data() + j * kPanel * kRows, tiles * kTile, sums);
        for (int64_t a = 0; a < kPanel && i * kPanel + a < p; ++a)
          for (int64_t b = 0; b < kPanel && j * kPanel + b < p; ++b)
            gram[(i * kPanel + a) * p + j * kPanel + b] += sums[a][b];
        if (++j > i) {
          ++i;
          j = 0;
        }
      }
    });
  }
  for (int64_t i = 0; i < p; ++i)
    for (int64_t j = i + 1; j < p; ++j) gram[i * p + j] = gram[j * p + i];
  return result;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("subspace_gram", TORCH_BOX(&lbgap::subspace_gram)); }
