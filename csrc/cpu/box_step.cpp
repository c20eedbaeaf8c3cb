// box_step on the CPU: y + alpha * direction, projected onto the box, goes to out.

#include <torch/csrc/stable/library.h>

#include "../box_checks.h"
#include "loops.h"

namespace lbgap {
namespace {

LBGAP_CLONES void block_f32(Step<float> f, const float* y, const float* d, const float* x, float* out,
                            int64_t n, double* sums) {
  block<float>(f, y, d, x, out, n, sums);
}

LBGAP_CLONES void block_f64(Step<double> f, const double* y, const double* d, const double* x, double* out,
                            int64_t n, double* sums) {
  block<double>(f, y, d, x, out, n, sums);
}

Tensor box_step(const Tensor& y, const Tensor& direction, double alpha, const Tensor& centre, double absolute,
                double relative, Tensor out) {
  check_box(y, centre, absolute, relative, out);
  check_like(direction, y, "direction");
  check_overlap(out, direction, "direction");
  constexpr int kSums = Step<float>::kSums;
  std::vector<double> sums;
  if (y.scalar_type() == ScalarType::Float) {
    const Step<float> f{{static_cast<float>(absolute), static_cast<float>(relative)},
                        static_cast<float>(alpha)};
    sums = for_blocks<float>(y, &direction, centre, out, kSums,
                             [&](auto... block_args) { block_f32(f, block_args...); });
  } else {
    const Step<double> f{{absolute, relative}, alpha};
    sums = for_blocks<double>(y, &direction, centre, out, kSums,
                              [&](auto... block_args) { block_f64(f, block_args...); });
  }
  return sums_tensor(y, sums, kSums);
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("box_step", TORCH_BOX(&lbgap::box_step)); }
