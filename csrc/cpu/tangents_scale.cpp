// tangents_scale on the CPU: first * t goes to out.

#include <torch/csrc/stable/library.h>

#include "tangents.h"

namespace lbgap {
namespace {

template <typename T>
struct Scale {
  const T* t;
  const Math<T>* first;
  T* out;
  int64_t k;
  int64_t size;

  LBGAP_INLINE void rows(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * size;
      const int64_t shared = row / k * size;
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i) out[at + i] = narrow<T>(scaled(widen(t[at + i]), first[shared + i]));
    }
  }
};

LBGAP_CLONES void some_rows(Scale<float> f, int64_t begin, int64_t end) { f.rows(begin, end); }
LBGAP_CLONES void some_rows(Scale<double> f, int64_t begin, int64_t end) { f.rows(begin, end); }
LBGAP_CLONES void some_rows(Scale<Bfloat16> f, int64_t begin, int64_t end) { f.rows(begin, end); }

void tangents_scale(const Tensor& t, const Tensor& first, Tensor out) {
  const Tangents n = check_tangents(t, out);
  check_shared(first, t, out, n.batch * n.size, "first");
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    const Scale<T> f{data<T>(t), data<Math<T>>(first), written<T>(out), n.k, n.size};
    for_rows(n.batch * n.k, n.size, [&](int64_t begin, int64_t end) { some_rows(f, begin, end); });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("tangents_scale", TORCH_BOX(&lbgap::tangents_scale)); }
