// box_step on the GPU: y + alpha * direction, projected onto the box, goes to out.

#include <torch/csrc/stable/library.h>

#include "../box.h"
#include "../box_checks.h"
#include "map.cuh"

namespace lbgap {
namespace {

Tensor box_step(const Tensor& y, const Tensor& direction, double alpha, const Tensor& centre, double absolute,
                double relative, Tensor out) {
  check_box(y, centre, absolute, relative, out);
  check_like(direction, y, "direction");
  check_overlap(out, direction, "direction");
  const Device device(y);
  Tensor sums;
  by_dtype(y, [&](auto zero) {
    using T = decltype(zero);
    const Step<T> f{{static_cast<T>(absolute), static_cast<T>(relative)}, static_cast<T>(alpha)};
    sums = map<T, 3>(device, f, y, {&y, &direction, &centre}, &out);
  });
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("box_step", TORCH_BOX(&lbgap::box_step)); }
