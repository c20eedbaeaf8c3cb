// box_vertex on the GPU: the vertex of the box that is furthest along the gradient goes to out.

#include <torch/csrc/stable/library.h>

#include "../box.h"
#include "../box_checks.h"
#include "map.cuh"

namespace lbgap {
namespace {

Tensor box_vertex(const Tensor& y, const Tensor& gradient, const Tensor& centre, double absolute,
                  double relative, Tensor out) {
  check_box(y, centre, absolute, relative, out);
  check_like(gradient, y, "gradient");
  check_overlap(out, gradient, "gradient");
  const Device device(y);
  Tensor sums;
  by_dtype(y, [&](auto zero) {
    using T = decltype(zero);
    const Vertex<T> f{{static_cast<T>(absolute), static_cast<T>(relative)}};
    sums = map<T, 3>(device, f, y, {&y, &gradient, &centre}, &out);
  });
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("box_vertex", TORCH_BOX(&lbgap::box_vertex)); }
