// history_append on the CPU: one more pair of differences, and its inner products with all pairs.

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "history.h"

namespace lbgap {
namespace {

// a.s, a.y, b.s and b.y in one go.
template <typename T>
LBGAP_INLINE void products(const T* a, const T* b, const T* s, const T* y, int64_t n, double* sums) {
  Half sum[4][2] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t h = 0; h < 2; ++h) {
      Half of_a, of_b, of_s, of_y;
      load(a + i + h * kHalf, &of_a);
      load(b + i + h * kHalf, &of_b);
      load(s + i + h * kHalf, &of_s);
      load(y + i + h * kHalf, &of_y);
      sum[0][h] += of_a * of_s;
      sum[1][h] += of_a * of_y;
      sum[2][h] += of_b * of_s;
      sum[3][h] += of_b * of_y;
    }
  double lanes[4][kLanes];
  std::memcpy(lanes, sum, sizeof(lanes));
  for (int64_t j = 0; i + j < n; ++j) {
    lanes[0][j] += double(a[i + j]) * double(s[i + j]);
    lanes[1][j] += double(a[i + j]) * double(y[i + j]);
    lanes[2][j] += double(b[i + j]) * double(s[i + j]);
    lanes[3][j] += double(b[i + j]) * double(y[i + j]);
  }
  for (int64_t k = 0; k < 4; ++k) {
    fold(lanes[k], kLanes, 1);
    sums[k] = lanes[k][0];
  }
}

template <typename T>
LBGAP_INLINE void block(const T* x_new, const T* x, const T* g_new, const T* g, T* s, T* y,
                        const std::vector<const T*>& rows, int64_t begin, int64_t end, double* sums) {
  for (int64_t i = begin; i < end; ++i) s[i] = x_new[i] - x[i];
  for (int64_t i = begin; i < end; ++i) y[i] = g_new[i] - g[i];
  const auto c = static_cast<int64_t>(rows.size() / 2);
  for (int64_t k = 0; k < c; ++k)
    products(rows[c + k] + begin, rows[k] + begin, s + begin, y + begin, end - begin, sums + 4 * k);
}

LBGAP_CLONES void run(const float* x_new, const float* x, const float* g_new, const float* g, float* s,
                      float* y, const std::vector<const float*>& rows, int64_t begin, int64_t end,
                      double* sums) {
  block(x_new, x, g_new, g, s, y, rows, begin, end, sums);
}

LBGAP_CLONES void run(const double* x_new, const double* x, const double* g_new, const double* g, double* s,
                      double* y, const std::vector<const double*>& rows, int64_t begin, int64_t end,
                      double* sums) {
  block(x_new, x, g_new, g, s, y, rows, begin, end, sums);
}

Tensor history_append(const Tensor& x_new, const Tensor& x, const Tensor& g_new, const Tensor& g, Tensor S,
                      Tensor Y, int64_t row) {
  check_append(x_new, x, g_new, g, S, Y, row);
  const int64_t c = S.size(0);
  std::vector<double> sums;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<const T*> rows = rows_of_history<T>(S, Y);
    T* s = S.mutable_data_ptr<T>() + row * rows_of(S, "S").stride;
    T* y = Y.mutable_data_ptr<T>() + row * rows_of(Y, "Y").stride;
    sums = sum_blocks(x.size(0), kBlock, 4 * c, [&](int64_t begin, int64_t end, double* partial) {
      run(x_new.const_data_ptr<T>(), x.const_data_ptr<T>(), g_new.const_data_ptr<T>(), g.const_data_ptr<T>(),
          s, y, rows, begin, end, partial);
    });
  });
  return float64_tensor(x, {c, 4}, sums.data());
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("history_append", TORCH_BOX(&lbgap::history_append)); }
