// Argument checks of the ops on tangents, shared by the CPU and CUDA entry points.

#pragma once

#include <optional>
#include <vector>

#include "checks.h"
#include "tangents.h"

namespace lbgap {

// Tangents of k vectors, (batch, k, ...): `size` numbers for each sample and vector.
struct Tangents {
  int64_t batch;
  int64_t k;
  int64_t size;
};

inline Tangents tangents_of(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
                  name, " must be float32, float64 or bfloat16");
  STD_TORCH_CHECK(t.dim() >= 2, name, " must be (batch, k, ...), got ", t.dim(), " dimensions");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  int64_t size = 1;
  for (int64_t dim = 2; dim < t.dim(); ++dim) size *= t.size(dim);
  return {t.size(0), t.size(1), size};
}

// The type of what all tangents share.
inline ScalarType shared_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::BFloat16 ? ScalarType::Float : t.scalar_type();
}

// A contiguous tensor of `numel` elements beside the tangents t.
inline void check_beside(const Tensor& shared, const Tensor& t, ScalarType dtype, int64_t numel,
                         const char* name) {
  STD_TORCH_CHECK(shared.scalar_type() == dtype, name,
                  " must have the dtype of t, and float32 for bfloat16; places must be int64");
  STD_TORCH_CHECK(shared.numel() == numel, name, " must have ", numel, " elements, got ", shared.numel());
  STD_TORCH_CHECK(shared.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(same_device(shared, t), name, " must be on the device of t");
}

// What is written may be `in` itself where they are alike, but may not overlap it in any other way.
inline void check_written(const Tensor& out, const Tensor& in, bool may_be, const char* name) {
  if (out.numel() == 0 || in.numel() == 0) return;
  const auto begin = [](const Tensor& t) { return reinterpret_cast<intptr_t>(t.const_data_ptr()); };
  const auto end = [&](const Tensor& t) {
    return begin(t) + t.numel() * static_cast<int64_t>(t.element_size());
  };
  const bool apart = end(out) <= begin(in) || end(in) <= begin(out);
  STD_TORCH_CHECK(apart || (may_be && begin(out) == begin(in)), "out overlaps ", name,
                  " without being it: pass a separate tensor");
}

// A pass over t and values that its vectors share, into `out`, which may be t.
inline Tangents check_tangents(const Tensor& t, const Tensor& out) {
  const Tangents size = tangents_of(t, "t");
  check_beside(out, t, t.scalar_type(), t.numel(), "out");
  check_written(out, t, true, "t");
  return size;
}

inline void check_shared(const Tensor& shared, const Tensor& t, const Tensor& out, int64_t numel,
                         const char* name) {
  check_beside(shared, t, shared_dtype(t), numel, name);
  check_written(out, shared, false, name);
}

inline Tangents check_curve(const Tensor& r, const Tensor& first, const Tensor& curve, const Tensor& t,
                            const Tensor& out) {
  const Tangents size = check_tangents(r, out);
  check_shared(first, r, out, size.batch * size.size, "first");
  check_shared(curve, r, out, size.batch * size.size, "curve");
  check_beside(t, r, r.scalar_type(), r.numel(), "t");
  check_written(out, t, true, "t");
  return size;
}

// Max-pooling of `channels` planes of `before` elements each to `after`.
struct Pooled {
  int64_t batch;
  int64_t k;
  int64_t channels;
  int64_t before;
  int64_t after;

  // The plane of the places that serves a plane of the tangents.
  LBGAP_INLINE int64_t shared(int64_t plane) const {
    return plane / (k * channels) * channels + plane % channels;
  }
};

inline Pooled check_pooled(const Tensor& wide, const Tensor& pooled, const Tensor& places,
                           const Tensor& out) {
  const Tangents w = tangents_of(wide, "t");
  const Tangents p = tangents_of(pooled, "pooled");
  STD_TORCH_CHECK(wide.dim() >= 4 && wide.dim() <= 5 && pooled.dim() == wide.dim() && w.batch == p.batch &&
                      w.k == p.k && wide.size(2) == pooled.size(2),
                  "tangents before and after pooling must be (batch, k, channels, ...) in one or two further "
                  "dimensions");
  check_beside(pooled, wide, wide.scalar_type(), pooled.numel(), "pooled");
  const int64_t channels = wide.size(2);
  check_beside(places, wide, ScalarType::Long, p.batch * p.size, "places");
  check_written(out, places, false, "places");
  check_written(wide, pooled, false, "t");
  return {w.batch, w.k, channels, channels == 0 ? 0 : w.size / channels,
          channels == 0 ? 0 : p.size / channels};
}

// Scale, slopes, values and shifts of a map of (batch, k, channels, ...).
inline Tangents check_affine(const Tensor& t, const Tensor& scale, const std::optional<Tensor>& slopes,
                             const std::optional<Tensor>& values, const std::optional<Tensor>& shifts,
                             const Tensor& out) {
  const Tangents n = check_tangents(t, out);
  STD_TORCH_CHECK(t.dim() >= 3, "t must be (batch, k, channels, ...), got ", t.dim(), " dimensions");
  const int64_t channels = t.size(2);
  check_shared(scale, t, out, channels, "scale");
  STD_TORCH_CHECK(slopes.has_value() == values.has_value(), "slopes and values must come together");
  if (slopes.has_value()) check_shared(*slopes, t, out, n.k * channels, "slopes");
  if (values.has_value()) check_shared(*values, t, out, n.batch * n.size, "values");
  if (shifts.has_value()) check_shared(*shifts, t, out, n.k * channels, "shifts");
  return n;
}

inline Tangents check_softmax(const Tensor& t, const Tensor& p, const std::optional<Tensor>& weights,
                              const Tensor& out) {
  const Tangents n = check_tangents(t, out);
  STD_TORCH_CHECK(t.dim() == 3, "t must be (batch, k, classes), got ", t.dim(), " dimensions");
  check_shared(p, t, out, n.batch * n.size, "p");
  if (weights.has_value()) check_shared(*weights, t, out, n.batch, "weights");
  return n;
}

// The two numbers of a window, of one or two given.
inline void check_window(const std::vector<int64_t>& numbers, int64_t dims, int64_t least, int64_t missing,
                         const char* name, int64_t (&two)[2]) {
  STD_TORCH_CHECK(static_cast<int64_t>(numbers.size()) == dims, name, " must have ", dims, " numbers, got ",
                  numbers.size());
  two[0] = dims == 2 ? numbers[0] : missing;
  two[1] = numbers[dims - 1];
  for (const int64_t number : two)
    STD_TORCH_CHECK(number >= least && number < (int64_t(1) << 31), name, " must be at least ", least,
                    " and below 2^31, got ", number);
}

inline Windows check_windows(const Tensor& before, const Tensor& after, const std::vector<int64_t>& kernel,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation) {
  const int64_t dims = before.dim() - 3;
  Windows windows{};
  for (int d = 0; d < 2; ++d) {
    const bool there = dims == 2 || d == 1;
    windows.before[d] = there ? before.size(before.dim() - 2 + d) : 1;
    windows.after[d] = there ? after.size(after.dim() - 2 + d) : 1;
  }
  check_window(kernel, dims, 1, 1, "kernel", windows.kernel);
  check_window(stride, dims, 1, 1, "stride", windows.stride);
  check_window(padding, dims, 0, 0, "padding", windows.padding);
  check_window(dilation, dims, 1, 1, "dilation", windows.dilation);
  return windows;
}

// Calls f with a T of the dtype of the tangents.
template <typename F>
void by_tangent(const Tensor& t, const F& f) {
  if (t.scalar_type() == ScalarType::BFloat16)
    f(Bfloat16{});
  else if (t.scalar_type() == ScalarType::Float)
    f(float{});
  else
    f(double{});
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
const T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

template <typename T>
T* written(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace lbgap
