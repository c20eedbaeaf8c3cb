// Argument checks of the ops on the box, shared by the CPU and CUDA entry points.

#pragma once

#include "checks.h"

namespace lbgap {

inline void check_box(const Tensor& y, const Tensor& centre, double absolute, double relative,
                      const Tensor& out) {
  const ScalarType dtype = y.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "y must be float32 or float64");
  STD_TORCH_CHECK(absolute >= 0 && relative >= 0, "half-widths must not be negative, got absolute ", absolute,
                  " and relative ", relative);
  check_like(out, y, "out");
  check_centre(centre, y);
  const Rows o = rows_of(out, "out");
  STD_TORCH_CHECK(o.k <= 1 || o.stride >= o.n, "out has rows that overlap each other: pass a fresh tensor");
  check_overlap(out, y, "y");
  check_overlap(out, centre, "centre");
}

}  // namespace lbgap
