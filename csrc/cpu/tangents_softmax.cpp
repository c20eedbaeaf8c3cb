// tangents_softmax on the CPU: weight * (p * t - p <p, t>) goes to out, row by row.

#include <torch/csrc/stable/library.h>

#include "tangents.h"

namespace lbgap {
namespace {

template <typename T>
struct Softmax {
  const T* t;
  const Math<T>* p;
  const Math<T>* weights;
  T* out;
  int64_t k;
  int64_t classes;

  // <p, t> of one row: one after the other, or in lanes.
  LBGAP_INLINE double few(const T* from, const Math<T>* q) const {
    double sum = 0.0;
    for (int64_t i = 0; i < classes; ++i) sum += double(q[i]) * double(widen(from[i]));
    return sum;
  }

  LBGAP_INLINE double many(const T* from, const Math<T>* q) const {
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= classes; i += kLanes)
#pragma GCC ivdep
      for (int64_t j = 0; j < kLanes; ++j) lanes[j] += double(q[i + j]) * double(widen(from[i + j]));
    for (int64_t j = 0; i + j < classes; ++j) lanes[j] += double(q[i + j]) * double(widen(from[i + j]));
    fold(lanes, kLanes, 1);
    return lanes[0];
  }

  LBGAP_INLINE void rows(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = t + row * classes;
      const Math<T>* q = p + row / k * classes;
      const Math<T> weight = weights == nullptr ? Math<T>(1) : weights[row / k];
      T* to = out + row * classes;
      const auto along = static_cast<Math<T>>(classes < kLanes ? few(from, q) : many(from, q));
#pragma GCC ivdep
      for (int64_t c = 0; c < classes; ++c) to[c] = narrow<T>(centred(widen(from[c]), q[c], along, weight));
    }
  }
};

LBGAP_CLONES void some_rows(Softmax<float> f, int64_t begin, int64_t end) { f.rows(begin, end); }
LBGAP_CLONES void some_rows(Softmax<double> f, int64_t begin, int64_t end) { f.rows(begin, end); }
LBGAP_CLONES void some_rows(Softmax<Bfloat16> f, int64_t begin, int64_t end) { f.rows(begin, end); }

void tangents_softmax(const Tensor& t, const Tensor& p, std::optional<Tensor> weights, Tensor out) {
  const Tangents n = check_softmax(t, p, weights, out);
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    const Softmax<T> f{data<T>(t), data<Math<T>>(p), data<Math<T>>(weights), written<T>(out), n.k, n.size};
    for_rows(n.batch * n.k, n.size, [&](int64_t begin, int64_t end) { some_rows(f, begin, end); });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("tangents_softmax", TORCH_BOX(&lbgap::tangents_softmax)); }
