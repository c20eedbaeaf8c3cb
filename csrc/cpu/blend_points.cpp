// blend_points on the CPU: k combinations of j ends go to out, in one pass.

#include <torch/csrc/stable/library.h>

#include "../points_checks.h"
#include "loops.h"

namespace lbgap {
namespace {

constexpr int64_t kTile = 64;

// An end that takes part in a point.
template <typename T>
struct Term {
  double coefficient;
  const T* end;
};

// kTerms of them known to the compiler, or any number where it is 0. The first begins the sum: with
// coefficient 1 and alone it is the end itself.
template <int kTerms, typename T>
LBGAP_INLINE void sum_terms(const Term<T>* terms, int64_t count, int64_t at, int64_t n, T* out) {
  const int64_t all = kTerms > 0 ? kTerms : count;
  double sum[kTile];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) sum[i] = terms[0].coefficient * double(terms[0].end[at + i]);
  for (int64_t t = 1; t < all; ++t) {
    const double c = terms[t].coefficient;
    const T* end = terms[t].end + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) sum[i] += c * double(end[i]);
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[at + i] = static_cast<T>(sum[i]);
}

template <typename T>
LBGAP_INLINE void row(const std::vector<Term<T>>& terms, int64_t begin, int64_t end, T* out) {
  if (terms.empty()) {
    std::fill(out + begin, out + end, T(0));
    return;
  }
  const auto count = static_cast<int64_t>(terms.size());
  int64_t at = begin;
  for (; at + kTile <= end; at += kTile) {
    if (count == 2)
      sum_terms<2>(terms.data(), 2, at, kTile, out);
    else if (count == 3)
      sum_terms<3>(terms.data(), 3, at, kTile, out);
    else
      sum_terms<0>(terms.data(), count, at, kTile, out);
  }
  sum_terms<0>(terms.data(), count, at, end - at, out);
}

LBGAP_CLONES void run(const std::vector<Term<float>>& terms, int64_t begin, int64_t end, float* out) {
  row(terms, begin, end, out);
}

LBGAP_CLONES void run(const std::vector<Term<double>>& terms, int64_t begin, int64_t end, double* out) {
  row(terms, begin, end, out);
}

void blend_points(const Tensor& coefficients, const Tensor& ends, Tensor out) {
  check_blend(coefficients, ends, out);
  const Rows c = rows_of(coefficients, "coefficients");
  const Rows e = rows_of(ends, "ends");
  const Rows o = rows_of(out, "out");
  const int64_t blocks = (e.n + kBlock - 1) / kBlock;
  by_dtype(ends, [&](auto zero) {
    using T = decltype(zero);
    const double* weights = coefficients.const_data_ptr<double>();
    const T* data = ends.const_data_ptr<T>();
    T* out_data = out.mutable_data_ptr<T>();
    // Neighbouring tasks are points that read the same block of the ends.
    torch::stable::parallel_for(0, blocks * o.k, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<Term<T>> terms;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t point = task % o.k;
        const int64_t at = task / o.k * kBlock;
        terms.clear();
        for (int64_t i = 0; i < c.n; ++i) {
          const double weight = weights[point * c.stride + i];
          if (weight != 0.0) terms.push_back({weight, data + i * e.stride});
        }
        run(terms, at, std::min(at + kBlock, e.n), out_data + point * o.stride);
      }
    });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("blend_points", TORCH_BOX(&lbgap::blend_points)); }
