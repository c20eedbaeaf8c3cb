// subspace_apply on the CPU: centre + A z goes to out, A drawn tile by tile for all k points at once.

#include <torch/csrc/stable/library.h>

#include "subspace.h"

namespace lbgap {
namespace {

// One tile: sums[c * kTile + r] = the sum of A_rj z_cj over j, in rising order. z is (k, 4 panels), zeros
// beyond p.
template <typename D>
LBGAP_INLINE void tile(const Stream& s, uint64_t row, const double* z, int64_t k, int64_t panels,
                       double* sums) {
  alignas(64) Tile<D> a;
  std::fill_n(sums, k * kTile, 0.0);
  for (int64_t panel = 0; panel < panels; ++panel) {
    a.fill(s, row, panel);
    for (int64_t c = 0; c < k; ++c) {
      const double* at = z + (c * panels + panel) * kPanel;
      const double z0 = at[0], z1 = at[1], z2 = at[2], z3 = at[3];
      double* sum = sums + c * kTile;
#pragma GCC ivdep
      for (int64_t r = 0; r < kTile; ++r) {
        double total = sum[r];
        total += double(a.entry[0][r]) * z0;
        total += double(a.entry[1][r]) * z1;
        total += double(a.entry[2][r]) * z2;
        total += double(a.entry[3][r]) * z3;
        sum[r] = total;
      }
    }
  }
}

LBGAP_CLONES void tile_normal(const Stream& s, uint64_t row, const double* z, int64_t k, int64_t panels,
                              double* sums) {
  tile<Normal>(s, row, z, k, panels, sums);
}

LBGAP_CLONES void tile_uniform(const Stream& s, uint64_t row, const double* z, int64_t k, int64_t panels,
                               double* sums) {
  tile<Uniform>(s, row, z, k, panels, sums);
}

LBGAP_CLONES void tile_rademacher(const Stream& s, uint64_t row, const double* z, int64_t k, int64_t panels,
                                  double* sums) {
  tile<Rademacher>(s, row, z, k, panels, sums);
}

template <typename T>
void apply(const Tensor& centre, const Tensor& z, int64_t distribution, const Stream& s, Tensor& out) {
  const auto run = distribution == kNormal    ? tile_normal
                   : distribution == kUniform ? tile_uniform
                                              : tile_rademacher;
  const Rows coordinates = rows_of(z, "z");
  const Rows rows = rows_of(out, "out");
  const int64_t panels = panels_of(coordinates.n);
  std::vector<double> padded(static_cast<size_t>(rows.k * panels * kPanel), 0.0);
  for (int64_t c = 0; c < rows.k; ++c)
    std::copy_n(z.const_data_ptr<double>() + c * coordinates.stride, coordinates.n,
                padded.data() + c * panels * kPanel);
  const T* x = centre.const_data_ptr<T>();
  T* out_data = out.mutable_data_ptr<T>();
  const int64_t blocks = rows.k == 0 ? 0 : (rows.n + kBlock - 1) / kBlock;

  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(rows.k * kTile));
    for (int64_t i = begin * kBlock; i < std::min(end * kBlock, rows.n); i += kTile) {
      run(s, s.first + static_cast<uint64_t>(i), padded.data(), rows.k, panels, sums.data());
      const int64_t count = std::min(kTile, rows.n - i);
      // The last row first: row 0 of out may be the centre itself.
      for (int64_t c = rows.k - 1; c >= 0; --c)
        for (int64_t r = 0; r < count; ++r)
          out_data[c * rows.stride + i + r] =
              static_cast<T>(double(x[i + r]) + sums[static_cast<size_t>(c * kTile + r)]);
    }
  });
}

void subspace_apply(const Tensor& centre, const Tensor& z, int64_t distribution, int64_t seed, int64_t stream,
                    int64_t first, Tensor out) {
  check_apply(centre, z, out);
  check_matrix(rows_of(z, "z").n, distribution, stream, first);
  const Stream s = stream_of(seed, stream, first);
  if (out.scalar_type() == ScalarType::Float)
    apply<float>(centre, z, distribution, s, out);
  else
    apply<double>(centre, z, distribution, s, out);
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("subspace_apply", TORCH_BOX(&lbgap::subspace_apply)); }
