// history_append on the CPU: one more pair of differences, and its inner products with all pairs.

#include <torch/csrc/stable/library.h>

#include "history.h"

namespace lbgap {
namespace {

template <typename T>
LBGAP_INLINE void block(const T* x_new, const T* x, const T* g_new, const T* g, T* s, T* y,
                        const std::vector<const T*>& rows, int64_t begin, int64_t end, double* sums) {
  for (int64_t i = begin; i < end; ++i) s[i] = x_new[i] - x[i];
  for (int64_t i = begin; i < end; ++i) y[i] = g_new[i] - g[i];
  const auto c = static_cast<int64_t>(rows.size() / 2);
  for (int64_t k = 0; k < c; ++k) {
    const T* of_y = rows[k] + begin;
    const T* of_s = rows[c + k] + begin;
    sums[4 * k] = dot(of_s, s + begin, end - begin);
    sums[4 * k + 1] = dot(of_s, y + begin, end - begin);
    sums[4 * k + 2] = dot(of_y, s + begin, end - begin);
    sums[4 * k + 3] = dot(of_y, y + begin, end - begin);
  }
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
  check_bounds(x, x, x, 0.0, 0.0);
  check_vector(x_new, x, "x_new");
  check_vector(g_new, x, "g_new");
  check_vector(g, x, "g");
  check_history(S, Y, x);
  const int64_t c = S.size(0);
  STD_TORCH_CHECK(row >= 0 && row < c, "row must be below ", c, ", got ", row);
  check_apart(S, Y, "Y");
  for (const Tensor* out : {&S, &Y}) {
    check_apart(*out, x_new, "x_new");
    check_apart(*out, x, "x");
    check_apart(*out, g_new, "g_new");
    check_apart(*out, g, "g");
  }
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
