// history_gram on the CPU: inner products over the free coordinates, of the history and of the reduced
// gradient.

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "history.h"

namespace lbgap {
namespace {

constexpr int64_t kTile = 128;  // coordinates that are multiplied together
constexpr int64_t kPart = 64;   // coordinates that are looked at together

// Adds the products of rows a and a + 1 with rows b and b + 1 of the tile: half the loads of one at a time.
LBGAP_INLINE void add_products(const double* a, const double* b, int64_t size, double* lanes,
                               int64_t stride) {
  Half p00{}, p01{}, p10{}, p11{}, q00{}, q01{}, q10{}, q11{};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Half* a0 = reinterpret_cast<const Half*>(a + i);
    const Half* a1 = reinterpret_cast<const Half*>(a + kTile + i);
    const Half* b0 = reinterpret_cast<const Half*>(b + i);
    const Half* b1 = reinterpret_cast<const Half*>(b + kTile + i);
    p00 += a0[0] * b0[0];
    q00 += a0[1] * b0[1];
    p01 += a0[0] * b1[0];
    q01 += a0[1] * b1[1];
    p10 += a1[0] * b0[0];
    q10 += a1[1] * b0[1];
    p11 += a1[0] * b1[0];
    q11 += a1[1] * b1[1];
  }
  const Half halves[4] = {p00 + q00, p01 + q01, p10 + q10, p11 + q11};
  for (int s = 0; s < 4; ++s)
    *reinterpret_cast<Half*>(lanes + ((s / 2) * stride + s % 2) * kHalf) += halves[s];
}

// The free coordinates of a block are gathered into tiles: bound ones, nearly all near a maximum, cost
// nothing.
template <typename T>
LBGAP_INLINE void block(Bounds<T> bounds, const T* y, const T* x, const T* g,
                        const std::vector<const T*>& rows, double theta, const T* lower, const T* upper,
                        int64_t begin, int64_t end, double* tile, double* lanes, double* sums) {
  const auto total = static_cast<int64_t>(rows.size()) + 1;
  const int64_t padded = total + total % 2;
  int64_t filled = 0;
  int64_t index[kTile];
  for (int64_t at = begin; at < end; at += kPart) {
    const int64_t part = std::min(kPart, end - at);
    int64_t free[kPart];
    for (int64_t j = 0; j < part; ++j) free[j] = bounds.free(y[at + j], lower[at + j], upper[at + j]) ? 1 : 0;
    for (int64_t j = 0; j < part; ++j) {
      if (filled < kTile) index[filled] = at + j;
      filled += free[j];
    }
    if (filled <= kTile - kPart && at + kPart < end) continue;
    if (filled == 0) continue;
    const int64_t first = index[0];
    const bool together = index[filled - 1] - first == filled - 1;
    for (int64_t k = 0; k < total - 1; ++k) {
      const T* row = rows[static_cast<size_t>(k)];
      double* into = tile + k * kTile;
      if (together)
        for (int64_t j = 0; j < filled; ++j) into[j] = double(row[first + j]);
      else
        for (int64_t j = 0; j < filled; ++j) into[j] = double(row[index[j]]);
    }
    double* h = tile + (total - 1) * kTile;
    for (int64_t j = 0; j < filled; ++j) {
      const int64_t i = index[j];
      h[j] = double(g[i]) + theta * (double(y[i]) - double(x[i]));
    }
    const int64_t whole = (filled + kLanes - 1) / kLanes * kLanes;
    for (int64_t k = 0; k < total; ++k)
      for (int64_t j = filled; j < whole; ++j) tile[k * kTile + j] = 0.0;
    for (int64_t a = 0; a < padded; a += 2)
      for (int64_t b = 0; b <= a; b += 2)
        add_products(tile + a * kTile, tile + b * kTile, whole, lanes + (a * padded + b) * kHalf, padded);
    filled = 0;
  }
  for (int64_t i = 0; i < padded * padded; ++i) {
    fold(lanes + i * kHalf, kHalf, 1);
    sums[i] = lanes[i * kHalf];
  }
}

LBGAP_CLONES void run(Bounds<float> bounds, const float* y, const float* x, const float* g,
                      const std::vector<const float*>& rows, double theta, const float* lower,
                      const float* upper, int64_t begin, int64_t end, double* tile, double* lanes,
                      double* sums) {
  block(bounds, y, x, g, rows, theta, lower, upper, begin, end, tile, lanes, sums);
}

LBGAP_CLONES void run(Bounds<double> bounds, const double* y, const double* x, const double* g,
                      const std::vector<const double*>& rows, double theta, const double* lower,
                      const double* upper, int64_t begin, int64_t end, double* tile, double* lanes,
                      double* sums) {
  block(bounds, y, x, g, rows, theta, lower, upper, begin, end, tile, lanes, sums);
}

Tensor history_gram(const Tensor& y, const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y,
                    double theta, const Tensor& lower, const Tensor& upper, double absolute,
                    double relative) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(y, x, "y");
  check_vector(g, x, "g");
  check_history(S, Y, x);
  const int64_t total = 2 * S.size(0) + 1;
  const int64_t padded = total + total % 2;
  std::vector<double> sums;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Bounds<T> bounds{static_cast<T>(absolute), static_cast<T>(relative)};
    const std::vector<const T*> rows = rows_of_history<T>(S, Y);
    const int64_t size = block_size(x.size(0));
    sums = sum_blocks(x.size(0), size, padded * padded, [&](int64_t begin, int64_t end, double* partial) {
      std::vector<double> tile(static_cast<size_t>(padded * kTile), 0.0);
      std::vector<double> lanes(static_cast<size_t>(padded * padded * kHalf), 0.0);
      run(bounds, y.const_data_ptr<T>(), x.const_data_ptr<T>(), g.const_data_ptr<T>(), rows, theta,
          lower.const_data_ptr<T>(), upper.const_data_ptr<T>(), begin, end, tile.data(), lanes.data(),
          partial);
    });
  });
  std::vector<double> full(static_cast<size_t>(total * total));
  for (int64_t a = 0; a < total; ++a)
    for (int64_t b = 0; b <= a; ++b)
      full[static_cast<size_t>(a * total + b)] = full[static_cast<size_t>(b * total + a)] =
          sums[static_cast<size_t>(a * padded + b)];
  return float64_tensor(x, {total, total}, full.data());
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("history_gram", TORCH_BOX(&lbgap::history_gram)); }
