// box_project on the GPU: y, projected onto the box, goes to out.

#include <torch/csrc/stable/library.h>

#include "../box.h"
#include "../box_checks.h"
#include "map.cuh"

namespace lbgap {
namespace {

void box_project(const Tensor& y, const Tensor& centre, double absolute, double relative, Tensor out) {
  check_box(y, centre, absolute, relative, out);
  const Device device(y);
  by_dtype(y, [&](auto zero) {
    using T = decltype(zero);
    const Project<T> f{{static_cast<T>(absolute), static_cast<T>(relative)}};
    map<T, 2>(device, f, y, {&y, &centre}, &out);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("box_project", TORCH_BOX(&lbgap::box_project)); }
