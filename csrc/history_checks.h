// Argument checks of the ops on a history and its bounds, shared by the CPU and CUDA entry points.

#pragma once

#include <cstdint>

#include "checks.h"

namespace lbgap {

// A vector argument must be like x: (n,), contiguous, its dtype, on its device.
inline void check_vector(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1, name, " must be (n,), got ", t.dim(), " dimensions");
  check_like(t, x, name);
}

inline void check_history(const Tensor& S, const Tensor& Y, const Tensor& x) {
  STD_TORCH_CHECK(S.dim() == 2 && Y.dim() == 2, "S and Y must be (c, n)");
  const Rows s = rows_of(S, "S");
  const Rows y = rows_of(Y, "Y");
  STD_TORCH_CHECK(s.k == y.k && s.n == x.size(0) && y.n == x.size(0), "S and Y must be (c, ", x.size(0),
                  "), got (", s.k, ", ", s.n, ") and (", y.k, ", ", y.n, ")");
  for (const Tensor* t : {&S, &Y})
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type() && same_device(*t, x),
                    "S and Y must have the dtype and device of x");
}

// x and the bounds, checked; x gives n and the dtype.
inline void check_bounds(const Tensor& x, const Tensor& lower, const Tensor& upper, double absolute,
                         double relative) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "x must be float32 or float64");
  check_vector(x, x, "x");
  check_vector(lower, x, "lower");
  check_vector(upper, x, "upper");
  STD_TORCH_CHECK(absolute >= 0 && relative >= 0, "half-widths must not be negative, got absolute ", absolute,
                  " and relative ", relative);
}

// The model that a history defines at x, and an output that is none of its inputs.
inline void check_model(const Tensor& out, const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y,
                        const Tensor& lower, const Tensor& upper, double absolute, double relative) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(out, x, "out");
  check_vector(g, x, "g");
  check_history(S, Y, x);
  check_apart(out, x, "x");
  check_apart(out, g, "g");
  check_apart(out, S, "S");
  check_apart(out, Y, "Y");
  check_apart(out, lower, "lower");
  check_apart(out, upper, "upper");
}

inline void check_append(const Tensor& x_new, const Tensor& x, const Tensor& g_new, const Tensor& g,
                         const Tensor& S, const Tensor& Y, int64_t row) {
  check_bounds(x, x, x, 0.0, 0.0);
  check_vector(x_new, x, "x_new");
  check_vector(g_new, x, "g_new");
  check_vector(g, x, "g");
  check_history(S, Y, x);
  STD_TORCH_CHECK(row >= 0 && row < S.size(0), "row must be below ", S.size(0), ", got ", row);
  check_apart(S, Y, "Y");
  for (const Tensor* out : {&S, &Y}) {
    check_apart(*out, x_new, "x_new");
    check_apart(*out, x, "x");
    check_apart(*out, g_new, "g_new");
    check_apart(*out, g, "g");
  }
}

// A point of the segment from x to z; out may be x, z or a bound itself.
inline void check_segment(const Tensor& x, const Tensor& z, const Tensor& lower, const Tensor& upper,
                          double absolute, double relative, const Tensor& out) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(z, x, "z");
  check_vector(out, x, "out");
  check_overlap(out, x, "x");
  check_overlap(out, z, "z");
  check_overlap(out, lower, "lower");
  check_overlap(out, upper, "upper");
}

// Small matrices live on the host, whose arithmetic made them.
inline const double* small_matrix(const Tensor& t, int64_t numel, const char* name) {
  STD_TORCH_CHECK(
      t.scalar_type() == ScalarType::Double && t.is_cpu() && t.numel() == numel && t.is_contiguous(), name,
      " must be a contiguous float64 CPU tensor of ", numel, " elements");
  return t.const_data_ptr<double>();
}

}  // namespace lbgap
