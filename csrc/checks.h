// Argument checks shared by the CPU and CUDA entry points: they guard memory, Python judges intent.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

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

inline void check_floating(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
                  " must be float32 or float64");
}

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

// Calls f with a T of the tensor's dtype.
template <typename F>
void by_dtype(const Tensor& t, const F& f) {
  if (t.scalar_type() == ScalarType::Float)
    f(float{});
  else
    f(double{});
}

}  // namespace lbgap
