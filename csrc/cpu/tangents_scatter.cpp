// tangents_scatter on the CPU: each element of out is the sum of r over the windows whose largest element it
// is.

#include <torch/csrc/stable/library.h>

#include "tangents.h"

namespace lbgap {
namespace {

void tangents_scatter(const Tensor& r, const Tensor& places, std::vector<int64_t> kernel,
                      std::vector<int64_t> stride, std::vector<int64_t> padding,
                      std::vector<int64_t> dilation, Tensor out) {
  const Pooled n = check_pooled(out, r, places, out);
  const Windows windows = check_windows(out, r, kernel, stride, padding, dilation);
  const int64_t* place = data<int64_t>(places);
  by_tangent(r, [&](auto zero) {
    using T = decltype(zero);
    const T* from = data<T>(r);
    T* to = written<T>(out);
    for_rows(n.batch * n.k * n.channels, n.before, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane)
        for (int64_t j = 0; j < n.before; ++j)
          to[plane * n.before + j] =
              windows.sum(from + plane * n.after, place + n.shared(plane) * n.after, j);
    });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("tangents_scatter", TORCH_BOX(&lbgap::tangents_scatter)); }
