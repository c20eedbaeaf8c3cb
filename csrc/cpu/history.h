// What the history ops share on the CPU: their arguments, checked, and sums over fixed blocks.

#pragma once

#include <array>
#include <type_traits>

#include "../history.h"
#include "loops.h"

namespace lbgap {

// A vector argument must be like x: (n,), contiguous, its dtype, on the CPU.
inline void check_vector(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1, name, " must be (n,), got ", t.dim(), " dimensions");
  check_like(t, x, name);
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
}

inline void check_history(const Tensor& S, const Tensor& Y, const Tensor& x) {
  STD_TORCH_CHECK(S.dim() == 2 && Y.dim() == 2, "S and Y must be (c, n)");
  const Rows s = rows_of(S, "S");
  const Rows y = rows_of(Y, "Y");
  STD_TORCH_CHECK(s.k == y.k && s.n == x.size(0) && y.n == x.size(0), "S and Y must be (c, ", x.size(0),
                  "), got (", s.k, ", ", s.n, ") and (", y.k, ", ", y.n, ")");
  STD_TORCH_CHECK(
      S.scalar_type() == x.scalar_type() && Y.scalar_type() == x.scalar_type() && S.is_cpu() && Y.is_cpu(),
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

inline const double* small_matrix(const Tensor& t, int64_t numel, const char* name) {
  STD_TORCH_CHECK(
      t.scalar_type() == ScalarType::Double && t.is_cpu() && t.numel() == numel && t.is_contiguous(), name,
      " must be a contiguous float64 CPU tensor of ", numel, " elements");
  return t.const_data_ptr<double>();
}

inline Tensor float64_tensor(const Tensor& like, std::initializer_list<int64_t> shape, const double* values) {
  const std::vector<int64_t> sizes(shape);
  Tensor result =
      torch::stable::new_empty(like, {sizes.data(), sizes.size()}, std::make_optional(ScalarType::Double));
  std::copy(values, values + result.numel(), result.mutable_data_ptr<double>());
  return result;
}

// The 2c rows [Y; S].
template <typename T>
std::vector<const T*> rows_of_history(const Tensor& S, const Tensor& Y) {
  const Rows s = rows_of(S, "S");
  const Rows y = rows_of(Y, "Y");
  std::vector<const T*> rows;
  for (int64_t k = 0; k < y.k; ++k) rows.push_back(Y.const_data_ptr<T>() + k * y.stride);
  for (int64_t k = 0; k < s.k; ++k) rows.push_back(S.const_data_ptr<T>() + k * s.stride);
  return rows;
}

// run(begin, end, sums) does coordinates [begin, end), one block, and writes n_sums numbers; they are added
// over the fixed tree of the blocks.
template <typename Run>
std::vector<double> sum_blocks(int64_t n, int64_t size, int64_t n_sums, const Run& run) {
  const int64_t blocks = (n + size - 1) / size;
  std::vector<double> partial(static_cast<size_t>(std::max<int64_t>(blocks * n_sums, n_sums)), 0.0);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      run(b * size, std::min((b + 1) * size, n), partial.data() + b * n_sums);
  });
  for (int64_t s = 0; s < n_sums && blocks > 0; ++s) fold(partial.data() + s, blocks, n_sums);
  partial.resize(static_cast<size_t>(n_sums));
  return partial;
}

// Blocks of a size that keeps a reduction's partial sums few, whatever n.
inline int64_t block_size(int64_t n) { return std::max<int64_t>(kBlock, (n / 512 / kBlock) * kBlock); }

// Half of the lanes, in float64 and in T; the compiler splits them where registers are narrower.
constexpr int64_t kHalf = kLanes / 2;
using Half = double __attribute__((vector_size(kHalf * sizeof(double)), aligned(8), may_alias));
template <typename T>
struct Narrow {
  using Type __attribute__((vector_size(kHalf * sizeof(T)), aligned(sizeof(T)), may_alias)) = T;
};

template <typename T>
LBGAP_INLINE void load(const T* from, Half* to) {
  *to = __builtin_convertvector(*reinterpret_cast<const typename Narrow<T>::Type*>(from), Half);
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
