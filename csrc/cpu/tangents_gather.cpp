// tangents_gather on the CPU: the elements of t at the places of the largest go to out.

#include <torch/csrc/stable/library.h>

#include "tangents.h"

namespace lbgap {
namespace {

void tangents_gather(const Tensor& t, const Tensor& places, Tensor out) {
  const Pooled n = check_pooled(t, out, places, out);
  const int64_t* place = data<int64_t>(places);
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    const T* from = data<T>(t);
    T* to = written<T>(out);
    for_rows(n.batch * n.k * n.channels, n.after, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t* at = place + n.shared(plane) * n.after;
        for (int64_t i = 0; i < n.after; ++i)
          to[plane * n.after + i] = picked(from + plane * n.before, at[i], n.before);
      }
    });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("tangents_gather", TORCH_BOX(&lbgap::tangents_gather)); }
