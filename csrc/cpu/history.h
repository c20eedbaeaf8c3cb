// What the history ops share on the CPU: rows of the history, and sums over fixed blocks.

#pragma once

#include <array>
#include <type_traits>

#include "../history.h"
#include "../history_checks.h"
#include "loops.h"

namespace lbgap {

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

}  // namespace lbgap
