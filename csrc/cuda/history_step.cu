// history_step and history_line on the GPU: a point on the segment from x to z, and what a line search asks
// of it.

#include <torch/csrc/stable/library.h>

#include "history.cuh"
#include "map.cuh"

namespace lbgap {
namespace {

void history_step(const Tensor& x, const Tensor& z, double alpha, const Tensor& lower, const Tensor& upper,
                  double absolute, double relative, Tensor out) {
  check_segment(x, z, lower, upper, absolute, relative, out);
  const Device device(x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const LineStep<T> f{bounds_of<T>(absolute, relative), static_cast<T>(alpha)};
    map<T, 4>(device, f, x, {&x, &z, &lower, &upper}, &out);
  });
}

Tensor history_line(const Tensor& g, const Tensor& x, const Tensor& z, const Tensor& lower,
                    const Tensor& upper, double absolute, double relative) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(g, x, "g");
  check_vector(z, x, "z");
  const Device device(x);
  Tensor sums;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Line<T> f{bounds_of<T>(absolute, relative)};
    sums = map<T, 5>(device, f, x, {&g, &x, &z, &lower, &upper}, nullptr);
  });
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) {
  m.impl("history_step", TORCH_BOX(&lbgap::history_step));
  m.impl("history_line", TORCH_BOX(&lbgap::history_line));
}
