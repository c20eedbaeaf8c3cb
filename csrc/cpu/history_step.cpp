// history_step and history_line on the CPU: a point on the segment from x to z, and what a line search asks
// of it.

#include <torch/csrc/stable/library.h>

#include "history.h"

namespace lbgap {
namespace {

template <typename T>
LBGAP_INLINE void step_block(LineStep<T> f, const T* x, const T* z, const T* lower, const T* upper, T* out,
                             int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) out[i] = f(x[i], z[i], lower[i], upper[i], nullptr);
}

LBGAP_CLONES void step_run(LineStep<float> f, const float* x, const float* z, const float* lower,
                           const float* upper, float* out, int64_t begin, int64_t end) {
  step_block(f, x, z, lower, upper, out, begin, end);
}

LBGAP_CLONES void step_run(LineStep<double> f, const double* x, const double* z, const double* lower,
                           const double* upper, double* out, int64_t begin, int64_t end) {
  step_block(f, x, z, lower, upper, out, begin, end);
}

void history_step(const Tensor& x, const Tensor& z, double alpha, const Tensor& lower, const Tensor& upper,
                  double absolute, double relative, Tensor out) {
  check_segment(x, z, lower, upper, absolute, relative, out);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const LineStep<T> f{{static_cast<T>(absolute), static_cast<T>(relative)}, static_cast<T>(alpha)};
    sum_blocks(x.size(0), kBlock, 0, [&](int64_t begin, int64_t end, double*) {
      step_run(f, x.const_data_ptr<T>(), z.const_data_ptr<T>(), lower.const_data_ptr<T>(),
               upper.const_data_ptr<T>(), out.mutable_data_ptr<T>(), begin, end);
    });
  });
}

// The longest step is a minimum, the two others are sums.
template <typename T>
LBGAP_INLINE void line_block(Line<T> f, const T* g, const T* x, const T* z, const T* lower, const T* upper,
                             int64_t begin, int64_t end, double* sums, double* longest) {
  double slope[kLanes] = {};
  double squares[kLanes] = {};
  double least[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) least[j] = __builtin_inf();
  const auto one = [&](int64_t i, int64_t j) {
    double sums_of[] = {slope[j], squares[j], least[j]};
    f(g[i], x[i], z[i], lower[i], upper[i], sums_of);
    slope[j] = sums_of[0];
    squares[j] = sums_of[1];
    least[j] = sums_of[2];
  };
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) one(i + j, j);
  for (int64_t j = 0; i + j < end; ++j) one(i + j, j);
  fold(slope, kLanes, 1);
  fold(squares, kLanes, 1);
  sums[0] = slope[0];
  sums[1] = squares[0];
  *longest = *std::min_element(least, least + kLanes);
}

LBGAP_CLONES void line_run(Line<float> f, const float* g, const float* x, const float* z, const float* lower,
                           const float* upper, int64_t begin, int64_t end, double* sums, double* longest) {
  line_block(f, g, x, z, lower, upper, begin, end, sums, longest);
}

LBGAP_CLONES void line_run(Line<double> f, const double* g, const double* x, const double* z,
                           const double* lower, const double* upper, int64_t begin, int64_t end, double* sums,
                           double* longest) {
  line_block(f, g, x, z, lower, upper, begin, end, sums, longest);
}

Tensor history_line(const Tensor& g, const Tensor& x, const Tensor& z, const Tensor& lower,
                    const Tensor& upper, double absolute, double relative) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(g, x, "g");
  check_vector(z, x, "z");
  const int64_t n = x.size(0);
  std::vector<double> longest(static_cast<size_t>(n / kBlock + 1), __builtin_inf());
  std::vector<double> sums;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Line<T> f{{static_cast<T>(absolute), static_cast<T>(relative)}};
    sums = sum_blocks(n, kBlock, 2, [&](int64_t begin, int64_t end, double* partial) {
      line_run(f, g.const_data_ptr<T>(), x.const_data_ptr<T>(), z.const_data_ptr<T>(),
               lower.const_data_ptr<T>(), upper.const_data_ptr<T>(), begin, end, partial,
               longest.data() + begin / kBlock);
    });
  });
  sums.push_back(*std::min_element(longest.begin(), longest.end()));
  return float64_tensor(x, {3}, sums.data());
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) {
  m.impl("history_step", TORCH_BOX(&lbgap::history_step));
  m.impl("history_line", TORCH_BOX(&lbgap::history_line));
}
