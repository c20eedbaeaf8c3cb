// history_combine on the CPU: the subspace step, added to the Cauchy point where it is free.

#include <torch/csrc/stable/library.h>

#include "history.h"

namespace lbgap {
namespace {

constexpr int64_t kTile = 256;

template <typename T>
LBGAP_INLINE void block(Bounds<T> bounds, T* y, const T* x, const T* g, const std::vector<const T*>& rows,
                        const double* q, double theta, const T* lower, const T* upper, bool project,
                        int64_t begin, int64_t end) {
  double h[kTile];
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t size = std::min(kTile, end - at);
    for (int64_t j = 0; j < size; ++j)
      h[j] = double(g[at + j]) + theta * (double(y[at + j]) - double(x[at + j]));
    for (size_t k = 0; k < rows.size(); ++k) {
      const T* row = rows[k] + at;
      const double weight = q[k];
      for (int64_t j = 0; j < size; ++j) h[j] += weight * double(row[j]);
    }
    for (int64_t j = 0; j < size; ++j) {
      const T now = y[at + j];
      const T moved = static_cast<T>(double(now) - h[j] / theta);
      const T end_point = project ? bounds.project(moved, lower[at + j], upper[at + j]) : moved;
      y[at + j] = bounds.free(now, lower[at + j], upper[at + j]) ? end_point : now;
    }
  }
}

LBGAP_CLONES void run(Bounds<float> bounds, float* y, const float* x, const float* g,
                      const std::vector<const float*>& rows, const double* q, double theta,
                      const float* lower, const float* upper, bool project, int64_t begin, int64_t end) {
  block(bounds, y, x, g, rows, q, theta, lower, upper, project, begin, end);
}

LBGAP_CLONES void run(Bounds<double> bounds, double* y, const double* x, const double* g,
                      const std::vector<const double*>& rows, const double* q, double theta,
                      const double* lower, const double* upper, bool project, int64_t begin, int64_t end) {
  block(bounds, y, x, g, rows, q, theta, lower, upper, project, begin, end);
}

void history_combine(Tensor y, const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y,
                     const Tensor& q, double theta, const Tensor& lower, const Tensor& upper, double absolute,
                     double relative, bool project) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(y, x, "y");
  check_vector(g, x, "g");
  check_history(S, Y, x);
  check_apart(y, x, "x");
  check_apart(y, g, "g");
  check_apart(y, S, "S");
  check_apart(y, Y, "Y");
  check_apart(y, lower, "lower");
  check_apart(y, upper, "upper");
  const double* weights = small_matrix(q, 2 * S.size(0), "q");
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Bounds<T> bounds{static_cast<T>(absolute), static_cast<T>(relative)};
    const std::vector<const T*> rows = rows_of_history<T>(S, Y);
    sum_blocks(x.size(0), kBlock, 0, [&](int64_t begin, int64_t end, double*) {
      run(bounds, y.mutable_data_ptr<T>(), x.const_data_ptr<T>(), g.const_data_ptr<T>(), rows, weights, theta,
          lower.const_data_ptr<T>(), upper.const_data_ptr<T>(), project, begin, end);
    });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("history_combine", TORCH_BOX(&lbgap::history_combine)); }
