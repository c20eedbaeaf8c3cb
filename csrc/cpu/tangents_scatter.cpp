// tangents_scatter on the CPU: each element of out is the sum of r over the windows whose largest element it
// is.

#include <torch/csrc/stable/library.h>

#include "tangents.h"

namespace lbgap {
namespace {

// The windows add to the places of their largest elements in rising order, which is that in which
// Windows::sum adds them up: this takes a step for each window, not one for each element that it covers.
template <typename T>
void planes(const T* r, const int64_t* places, T* out, const Pooled& n, int64_t begin, int64_t end) {
  std::vector<Math<T>> sums(static_cast<size_t>(n.before));
  for (int64_t plane = begin; plane < end; ++plane) {
    std::fill(sums.begin(), sums.end(), Math<T>(0));
    const int64_t* at = places + n.shared(plane) * n.after;
    for (int64_t i = 0; i < n.after; ++i)
      if (at[i] >= 0 && at[i] < n.before) sums[static_cast<size_t>(at[i])] += widen(r[plane * n.after + i]);
    for (int64_t j = 0; j < n.before; ++j)
      out[plane * n.before + j] = narrow<T>(sums[static_cast<size_t>(j)]);
  }
}

void tangents_scatter(const Tensor& r, const Tensor& places, std::vector<int64_t> kernel,
                      std::vector<int64_t> stride, std::vector<int64_t> padding,
                      std::vector<int64_t> dilation, Tensor out) {
  const Pooled n = check_pooled(out, r, places, out);
  check_windows(out, r, kernel, stride, padding, dilation);
  by_tangent(r, [&](auto zero) {
    using T = decltype(zero);
    for_rows(n.batch * n.k * n.channels, n.before, [&](int64_t begin, int64_t end) {
      planes(data<T>(r), data<int64_t>(places), written<T>(out), n, begin, end);
    });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("tangents_scatter", TORCH_BOX(&lbgap::tangents_scatter)); }
