// subspace_project on the CPU: A'g, A drawn tile by tile for all k vectors at once, summed as loops.h sums.

#include <torch/csrc/stable/library.h>

#include "subspace.h"

namespace lbgap {
namespace {

// One tile by the panels of one chunk: coordinate r adds A_rj g_cr to lane r % kLanes of lanes[c][j].
// g is (k, kTile), zeros beyond the end.
template <typename D>
LBGAP_INLINE void tile(const Stream& s, uint64_t row, const double* g, int64_t k, int64_t begin, int64_t end,
                       double* lanes) {
  alignas(64) Tile<D> a;
  static_assert(kTile == 4 * kLanes);
  for (int64_t panel = begin; panel < end; ++panel) {
    a.fill(s, row, panel);
    for (int64_t c = 0; c < k; ++c)
      for (int64_t j = 0; j < kPanel; ++j) {
        const float* e = a.entry[j];
        const double* v = g + c * kTile;
        double* lane = lanes + (c * kChunk + (panel - begin) * kPanel + j) * kLanes;
#pragma GCC ivdep
        for (int64_t l = 0; l < kLanes; ++l) {
          double total = lane[l];
          total += double(e[l]) * v[l];
          total += double(e[l + kLanes]) * v[l + kLanes];
          total += double(e[l + 2 * kLanes]) * v[l + 2 * kLanes];
          total += double(e[l + 3 * kLanes]) * v[l + 3 * kLanes];
          lane[l] = total;
        }
      }
  }
}

LBGAP_CLONES void tile_normal(const Stream& s, uint64_t row, const double* g, int64_t k, int64_t begin,
                              int64_t end, double* lanes) {
  tile<Normal>(s, row, g, k, begin, end, lanes);
}

LBGAP_CLONES void tile_uniform(const Stream& s, uint64_t row, const double* g, int64_t k, int64_t begin,
                               int64_t end, double* lanes) {
  tile<Uniform>(s, row, g, k, begin, end, lanes);
}

LBGAP_CLONES void tile_rademacher(const Stream& s, uint64_t row, const double* g, int64_t k, int64_t begin,
                                  int64_t end, double* lanes) {
  tile<Rademacher>(s, row, g, k, begin, end, lanes);
}

// The sums of the blocks are p k / 4096 of n float32 numbers.
template <typename T>
void project(const Tensor& g, int64_t p, int64_t distribution, const Stream& s, double* result) {
  const auto run = distribution == kNormal    ? tile_normal
                   : distribution == kUniform ? tile_uniform
                                              : tile_rademacher;
  const Rows rows = rows_of(g, "g");
  const T* g_data = g.const_data_ptr<T>();
  const int64_t blocks = (rows.n + kBlock - 1) / kBlock;
  const int64_t sums = rows.k * p;
  if (blocks == 0 || sums == 0) return;
  std::vector<double> partial(static_cast<size_t>(blocks * sums));

  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first_block, int64_t end_block) {
    std::vector<double> values(static_cast<size_t>(rows.k * kTile));
    std::vector<double> lanes(static_cast<size_t>(rows.k * kChunk * kLanes));
    for (int64_t b = first_block; b < end_block; ++b)
      for (int64_t chunk = 0; chunk < p; chunk += kChunk) {
        const int64_t columns = std::min(kChunk, p - chunk);
        std::fill(lanes.begin(), lanes.end(), 0.0);
        for (int64_t i = b * kBlock; i < std::min((b + 1) * kBlock, rows.n); i += kTile) {
          const int64_t count = std::min(kTile, rows.n - i);
          for (int64_t c = 0; c < rows.k; ++c)
            for (int64_t r = 0; r < kTile; ++r)
              values[static_cast<size_t>(c * kTile + r)] =
                  r < count ? double(g_data[c * rows.stride + i + r]) : 0.0;
          run(s, s.first + static_cast<uint64_t>(i), values.data(), rows.k, chunk / kPanel,
              panels_of(chunk + columns), lanes.data());
        }
        for (int64_t c = 0; c < rows.k; ++c)
          for (int64_t j = 0; j < columns; ++j) {
            double* lane = lanes.data() + (c * kChunk + j) * kLanes;
            fold(lane, kLanes, 1);
            partial[static_cast<size_t>(b * sums + c * p + chunk + j)] = *lane;
          }
      }
  });

  for (int64_t j = 0; j < sums; ++j) {
    fold(partial.data() + j, blocks, sums);
    result[j] = partial[static_cast<size_t>(j)];
  }
}

Tensor subspace_project(const Tensor& g, int64_t p, int64_t distribution, int64_t seed, int64_t stream,
                        int64_t first) {
  const Rows rows = rows_of(g, "g");
  check_matrix(p, distribution, stream, first);
  check_floating(g, "g");
  Tensor result = g.dim() == 2 ? zeros(g, {rows.k, p}) : zeros(g, {p});
  const Stream s = stream_of(seed, stream, first);
  double* data = result.mutable_data_ptr<double>();
  if (g.scalar_type() == ScalarType::Float)
    project<float>(g, p, distribution, s, data);
  else
    project<double>(g, p, distribution, s, data);
  return result;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("subspace_project", TORCH_BOX(&lbgap::subspace_project)); }
