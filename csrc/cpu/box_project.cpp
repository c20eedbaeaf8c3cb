// box_project on the CPU: y, projected onto the box, goes to out.

#include <torch/csrc/stable/library.h>

#include "../box_checks.h"
#include "loops.h"

namespace lbgap {
namespace {

LBGAP_CLONES void block_f32(Project<float> f, const float* y, const float* x, float* out, int64_t n) {
  block<float>(f, y, nullptr, x, out, n, nullptr);
}

LBGAP_CLONES void block_f64(Project<double> f, const double* y, const double* x, double* out, int64_t n) {
  block<double>(f, y, nullptr, x, out, n, nullptr);
}

void box_project(const Tensor& y, const Tensor& centre, double absolute, double relative, Tensor out) {
  check_box(y, centre, absolute, relative, out);
  if (y.scalar_type() == ScalarType::Float) {
    const Project<float> f{{static_cast<float>(absolute), static_cast<float>(relative)}};
    for_blocks<float>(y, nullptr, centre, out, 0, [&](auto y_, auto, auto x, auto out_, int64_t n, double*) {
      block_f32(f, y_, x, out_, n);
    });
  } else {
    const Project<double> f{{absolute, relative}};
    for_blocks<double>(y, nullptr, centre, out, 0, [&](auto y_, auto, auto x, auto out_, int64_t n, double*) {
      block_f64(f, y_, x, out_, n);
    });
  }
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("box_project", TORCH_BOX(&lbgap::box_project)); }
