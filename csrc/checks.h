// Argument checks that the families of ops share, in the CPU and CUDA entry points: they guard memory, Python
// judges intent.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace lbgap {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

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
  STD_TORCH_CHECK(same_device(t, y), name, " must be on the device of y");
}

inline void check_centre(const Tensor& centre, const Tensor& y) {
  const Rows rows = rows_of(y, "y");
  STD_TORCH_CHECK(centre.dim() == 1 && centre.size(0) == rows.n && (rows.n <= 1 || centre.stride(0) == 1),
                  "centre must be a contiguous (", rows.n, ",) vector, got ", centre.dim(),
                  " dimensions and ", centre.numel(), " elements");
  STD_TORCH_CHECK(centre.scalar_type() == y.scalar_type(), "centre must have the dtype of y");
  STD_TORCH_CHECK(same_device(centre, y), "centre must be on the device of y");
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

inline void check_apart(const Tensor& out, const Tensor& in, const char* name) {
  if (out.numel() == 0 || in.numel() == 0) return;
  const auto begin = [](const Tensor& t) { return reinterpret_cast<intptr_t>(t.const_data_ptr()); };
  const auto end = [&](const Tensor& t) {
    const Rows r = rows_of(t, "t");
    return begin(t) + ((r.k - 1) * r.stride + r.n) * static_cast<int64_t>(t.element_size());
  };
  STD_TORCH_CHECK(end(out) <= begin(in) || end(in) <= begin(out), "the output overlaps ", name,
                  ": pass a separate tensor");
}

inline void check_floating(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
                  " must be float32 or float64");
}

// Calls f with a T of the tensor's dtype.
template <typename F>
void by_dtype(const Tensor& t, const F& f) {
  if (t.scalar_type() == ScalarType::Float)
    f(float{});
  else
    f(double{});
}

}  // namespace lbgap
