// Argument checks shared by the CPU and CUDA entry points: they guard memory, Python judges intent.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace lbgap {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// k rows of n coordinates; row_stride in elements.
struct Rows {
  int64_t k;
  int64_t n;
  int64_t stride;
};

inline Rows rows_of(const Tensor& t, const char* name) {
  const int64_t dim = t.dim();
  STD_TORCH_CHECK(dim == 1 || dim == 2, name, " must be (n,) or (k, n), got ", dim, " dimensions");
  const int64_t n = t.size(dim - 1);
  STD_TORCH_CHECK(n <= 1 || t.size(0) == 0 || t.stride(dim - 1) == 1, name, " must have contiguous rows");
  return dim == 1 ? Rows{1, n, n} : Rows{t.size(0), n, t.stride(0)};
}

inline void check_like(const Tensor& t, const Tensor& y, const char* name) {
  const Rows a = rows_of(t, name);
  const Rows b = rows_of(y, "y");
  STD_TORCH_CHECK(t.dim() == y.dim() && a.k == b.k && a.n == b.n, name, " must have the shape of y, (", b.k,
                  ", ", b.n, "), got (", a.k, ", ", a.n, ")");
  STD_TORCH_CHECK(t.scalar_type() == y.scalar_type(), name, " must have the dtype of y");
  STD_TORCH_CHECK(t.is_cpu() == y.is_cpu() && t.get_device_index() == y.get_device_index(), name,
                  " must be on the device of y");
}

inline void check_centre(const Tensor& centre, const Tensor& y) {
  const Rows rows = rows_of(y, "y");
  STD_TORCH_CHECK(centre.dim() == 1 && centre.size(0) == rows.n && (rows.n <= 1 || centre.stride(0) == 1),
                  "centre must be a contiguous (", rows.n, ",) vector, got ", centre.dim(),
                  " dimensions and ", centre.numel(), " elements");
  STD_TORCH_CHECK(centre.scalar_type() == y.scalar_type(), "centre must have the dtype of y");
  STD_TORCH_CHECK(centre.is_cpu() == y.is_cpu() && centre.get_device_index() == y.get_device_index(),
                  "centre must be on the device of y");
}

// Rows are written in parallel and inputs are read as they are written over: out may be an input itself,
// element for element, but may not overlap one in any other way, nor itself.
inline void check_overlap(const Tensor& out, const Tensor& in, const char* name) {
  const Rows o = rows_of(out, "out");
  const Rows i = rows_of(in, name);
  if (o.n == 0 || o.k == 0) return;
  const auto size = static_cast<int64_t>(out.element_size());
  const auto begin_of = [](const Tensor& t) { return reinterpret_cast<intptr_t>(t.const_data_ptr()); };
  const auto bytes_of = [size](const Rows& r) { return ((r.k - 1) * r.stride + r.n) * size; };
  const intptr_t a = begin_of(out);
  const intptr_t b = begin_of(in);
  const bool apart = a + bytes_of(o) <= b || b + bytes_of(i) <= a;
  const bool same = a == b && o.k == i.k && (o.k == 1 || o.stride == i.stride);
  STD_TORCH_CHECK(apart || same, "out overlaps ", name, " without being it: pass a separate tensor");
}

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
