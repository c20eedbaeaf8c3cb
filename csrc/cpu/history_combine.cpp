// history_combine on the CPU: the subspace step, added to the Cauchy point where it is free.

#include <torch/csrc/stable/library.h>

#include "history.h"

namespace lbgap {
namespace {

constexpr int64_t kTile = 256;

template <typename T>
LBGAP_INLINE void block(Combine<T> f, T* y, const T* x, const T* g, const std::vector<const T*>& rows,
                        const double* q, const T* lower, const T* upper, int64_t begin, int64_t end) {
  double h[kTile];
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t size = std::min(kTile, end - at);
    for (int64_t j = 0; j < size; ++j) h[j] = f.gradient(y[at + j], x[at + j], g[at + j]);
    for (size_t k = 0; k < rows.size(); ++k) {
      const T* row = rows[k] + at;
      const double weight = q[k];
      for (int64_t j = 0; j < size; ++j) h[j] += weight * double(row[j]);
    }
    for (int64_t j = 0; j < size; ++j) y[at + j] = f(y[at + j], h[j], lower[at + j], upper[at + j]);
  }
}

LBGAP_CLONES void run(Combine<float> f, float* y, const float* x, const float* g,
                      const std::vector<const float*>& rows, const double* q, const float* lower,
                      const float* upper, int64_t begin, int64_t end) {
  block(f, y, x, g, rows, q, lower, upper, begin, end);
}

LBGAP_CLONES void run(Combine<double> f, double* y, const double* x, const double* g,
                      const std::vector<const double*>& rows, const double* q, const double* lower,
                      const double* upper, int64_t begin, int64_t end) {
  block(f, y, x, g, rows, q, lower, upper, begin, end);
}

void history_combine(Tensor y, const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y,
                     const Tensor& q, double theta, const Tensor& lower, const Tensor& upper, double absolute,
                     double relative, bool project) {
  check_model(y, x, g, S, Y, lower, upper, absolute, relative);
  const double* weights = small_matrix(q, 2 * S.size(0), "q");
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Combine<T> f{{static_cast<T>(absolute), static_cast<T>(relative)}, theta, project};
    const std::vector<const T*> rows = rows_of_history<T>(S, Y);
    sum_blocks(x.size(0), kBlock, 0, [&](int64_t begin, int64_t end, double*) {
      run(f, y.mutable_data_ptr<T>(), x.const_data_ptr<T>(), g.const_data_ptr<T>(), rows, weights,
          lower.const_data_ptr<T>(), upper.const_data_ptr<T>(), begin, end);
    });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("history_combine", TORCH_BOX(&lbgap::history_combine)); }
