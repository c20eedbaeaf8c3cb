// tangents_curve on the CPU: first * r + curve * t goes to out.

#include <torch/csrc/stable/library.h>

#include "tangents.h"

namespace lbgap {
namespace {

template <typename T>
struct Curve {
  const T* r;
  const Math<T>* first;
  const Math<T>* curve;
  const T* t;
  T* out;
  int64_t k;
  int64_t size;

  LBGAP_INLINE void rows(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * size;
      const int64_t shared = row / k * size;
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i)
        out[at + i] =
            narrow<T>(curved(widen(r[at + i]), first[shared + i], curve[shared + i], widen(t[at + i])));
    }
  }
};

LBGAP_CLONES void some_rows(Curve<float> f, int64_t begin, int64_t end) { f.rows(begin, end); }
LBGAP_CLONES void some_rows(Curve<double> f, int64_t begin, int64_t end) { f.rows(begin, end); }
LBGAP_CLONES void some_rows(Curve<Bfloat16> f, int64_t begin, int64_t end) { f.rows(begin, end); }

void tangents_curve(const Tensor& r, const Tensor& first, const Tensor& curve, const Tensor& t, Tensor out) {
  const Tangents n = check_curve(r, first, curve, t, out);
  by_tangent(r, [&](auto zero) {
    using T = decltype(zero);
    const Curve<T> f{data<T>(r), data<Math<T>>(first), data<Math<T>>(curve), data<T>(t), written<T>(out), n.k,
                     n.size};
    for_rows(n.batch * n.k, n.size, [&](int64_t begin, int64_t end) { some_rows(f, begin, end); });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("tangents_curve", TORCH_BOX(&lbgap::tangents_curve)); }
