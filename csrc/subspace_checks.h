// Argument checks of the ops on a random subspace, shared by the CPU and CUDA entry points.

#pragma once

#include <cstdint>

#include "checks.h"

namespace lbgap {

// The numbers that choose a random matrix.
inline void check_matrix(int64_t p, int64_t distribution, int64_t stream, int64_t first) {
  STD_TORCH_CHECK(p >= 0 && p < (int64_t(1) << 33), "p must be between 0 and 2^33 - 1, got ", p);
  STD_TORCH_CHECK(distribution >= 0 && distribution <= 2, "unknown distribution ", distribution);
  STD_TORCH_CHECK(stream >= 0 && stream <= int64_t(UINT32_MAX), "stream must be between 0 and 2^32 - 1, got ",
                  stream);
  STD_TORCH_CHECK(first >= 0, "first must not be negative, got ", first);
}

inline void check_apply(const Tensor& centre, const Tensor& z, const Tensor& out) {
  const Rows coordinates = rows_of(z, "z");
  const Rows rows = rows_of(out, "out");
  check_floating(out, "out");
  check_centre(centre, out);
  STD_TORCH_CHECK(z.scalar_type() == ScalarType::Double, "z must be float64");
  STD_TORCH_CHECK(z.dim() == out.dim() && coordinates.k == rows.k, "z must have as many rows as out, ",
                  rows.k, ", got ", coordinates.k);
  STD_TORCH_CHECK(same_device(z, out), "z must be on the device of out");
  STD_TORCH_CHECK(rows.k <= 1 || rows.stride >= rows.n,
                  "out has rows that overlap each other: pass a fresh tensor");
  check_overlap(out, centre, "centre");
}

}  // namespace lbgap
