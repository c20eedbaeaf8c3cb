// Argument checks of the ops on many points, shared by the CPU and CUDA entry points.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "checks.h"

namespace lbgap {

// Class indices of N samples; that they are below the number of classes is looked at where they are used.
inline void check_targets(const Tensor& targets, const Tensor& like, int64_t samples) {
  STD_TORCH_CHECK(targets.dim() == 1 && targets.size(0) == samples &&
                      targets.scalar_type() == ScalarType::Long && (samples <= 1 || targets.stride(0) == 1),
                  "targets must be a contiguous (", samples, ",) int64 vector");
  STD_TORCH_CHECK(same_device(targets, like), "targets must be on the device of the logits");
}

inline void check_xent(const Tensor& logits, const Tensor& targets) {
  STD_TORCH_CHECK(logits.dim() == 3, "logits must be (k, N, c), got ", logits.dim(), " dimensions");
  check_floating(logits, "logits");
  STD_TORCH_CHECK(logits.size(2) >= 1 && logits.size(2) <= int64_t(INT32_MAX),
                  "logits must have between 1 and 2^31 - 1 classes, got ", logits.size(2));
  check_targets(targets, logits, logits.size(1));
}

// The coefficients (k, j) of k points, for j ends.
inline void check_coefficients(const Tensor& coefficients, const Tensor& ends, int64_t j) {
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(1) == j, "coefficients must be (k, ", j, ")");
  rows_of(coefficients, "coefficients");
  STD_TORCH_CHECK(coefficients.scalar_type() == ScalarType::Double, "coefficients must be float64");
  STD_TORCH_CHECK(same_device(coefficients, ends), "coefficients must be on the device of the ends");
}

inline void check_blend(const Tensor& coefficients, const Tensor& ends, const Tensor& out) {
  STD_TORCH_CHECK(ends.dim() == 2 && out.dim() == 2, "ends must be (j, m) and out (k, m)");
  check_floating(ends, "ends");
  const Rows e = rows_of(ends, "ends");
  const Rows o = rows_of(out, "out");
  check_coefficients(coefficients, ends, e.k);
  STD_TORCH_CHECK(o.k == coefficients.size(0) && o.n == e.n && out.scalar_type() == ends.scalar_type() &&
                      same_device(out, ends),
                  "out must be (", coefficients.size(0), ", ", e.n, "), of the dtype and device of the ends");
  STD_TORCH_CHECK(o.k <= 1 || o.stride >= o.n, "out has rows that overlap each other: pass a fresh tensor");
  check_apart(out, ends, "ends");
}

inline void check_chain(const Tensor& coefficients, const Tensor& first, const Tensor& ends,
                        const std::vector<int64_t>& widths, const Tensor& targets, int64_t widest,
                        size_t layers) {
  STD_TORCH_CHECK(!widths.empty() && widths.size() <= layers, "widths must name between 1 and ", layers,
                  " layers, got ", widths.size());
  int64_t numel = 0;
  for (size_t i = 0; i < widths.size(); ++i) {
    STD_TORCH_CHECK(widths[i] >= 1 && widths[i] <= widest, "widths must be between 1 and ", widest, ", got ",
                    widths[i]);
    numel += i == 0 ? 0 : widths[i] * (widths[i - 1] + 1);
  }
  STD_TORCH_CHECK(first.dim() == 3 && first.size(1) == widths[0], "first must be (j, ", widths[0], ", N)");
  check_floating(first, "first");
  STD_TORCH_CHECK(first.size(2) <= 1 || first.numel() == 0 || first.stride(2) == 1,
                  "first must have contiguous samples");
  STD_TORCH_CHECK(ends.dim() == 2 && ends.size(0) == first.size(0) && ends.size(1) == numel, "ends must be (",
                  first.size(0), ", ", numel, ")");
  rows_of(ends, "ends");
  STD_TORCH_CHECK(ends.scalar_type() == first.scalar_type() && same_device(ends, first),
                  "ends must have the dtype and device of first");
  check_coefficients(coefficients, ends, first.size(0));
  check_targets(targets, first, first.size(2));
}

}  // namespace lbgap
