// box_vertex on the CPU: the vertex of the box that is furthest along the gradient goes to out.

#include <torch/csrc/stable/library.h>

#include "../box_checks.h"
#include "loops.h"

namespace lbgap {
namespace {

LBGAP_CLONES void block_f32(Vertex<float> f, const float* y, const float* g, const float* x, float* out,
                            int64_t n, double* sums) {
  block<float>(f, y, g, x, out, n, sums);
}

LBGAP_CLONES void block_f64(Vertex<double> f, const double* y, const double* g, const double* x, double* out,
                            int64_t n, double* sums) {
  block<double>(f, y, g, x, out, n, sums);
}

Tensor box_vertex(const Tensor& y, const Tensor& gradient, const Tensor& centre, double absolute,
                  double relative, Tensor out) {
  check_box(y, centre, absolute, relative, out);
  check_like(gradient, y, "gradient");
  check_overlap(out, gradient, "gradient");
  constexpr int kSums = Vertex<float>::kSums;
  std::vector<double> sums;
  if (y.scalar_type() == ScalarType::Float) {
    const Vertex<float> f{{static_cast<float>(absolute), static_cast<float>(relative)}};
    sums = for_blocks<float>(y, &gradient, centre, out, kSums,
                             [&](auto... block_args) { block_f32(f, block_args...); });
  } else {
    const Vertex<double> f{{absolute, relative}};
    sums = for_blocks<double>(y, &gradient, centre, out, kSums,
                              [&](auto... block_args) { block_f64(f, block_args...); });
  }
  return sums_tensor(y, sums, kSums);
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("box_vertex", TORCH_BOX(&lbgap::box_vertex)); }
