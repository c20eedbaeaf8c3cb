// Who loops on the CPU: blocks of fixed size over threads, sums over a fixed tree.
//
// A block is kBlock coordinates of one row. Inside it coordinate i adds to lane i % kLanes, then the lanes
// are folded neighbour by neighbour, then the blocks of a row in the same way. Neither the number of threads
// nor the width of the SIMD registers enters, and products are not contracted (-ffp-contract=off): the bits
// are the same on every machine.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../box.h"
#include "../checks.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LBGAP_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LBGAP_CLONES
#endif

namespace lbgap {

constexpr int64_t kBlock = 8192;
constexpr int64_t kLanes = 16;
constexpr int64_t kGrain = 8;  // blocks a thread takes at least

// Fold values[0 .. count) into values[0], neighbours first.
inline void fold(double* values, int64_t count, int64_t stride) {
  for (int64_t step = 1; step < count; step *= 2)
    for (int64_t i = 0; i + step < count; i += 2 * step) values[i * stride] += values[(i + step) * stride];
}

// One block: out[i] = f(y[i], d[i], x[i]); the sums of the block go to sums[0 .. F::kSums).
// d may be null where F does not read it. Restrict is not claimed: out may be y.
template <typename T, typename F>
LBGAP_INLINE void block(const F& f, const T* y, const T* d, const T* x, T* out, int64_t n, double* sums) {
  constexpr int kSums = F::kSums;
  double lanes[kSums > 0 ? kSums : 1][kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    T result[kLanes];
#pragma GCC ivdep
    for (int64_t j = 0; j < kLanes; ++j) {
      double add[kSums > 0 ? kSums : 1] = {};
      result[j] = f(y[i + j], d == nullptr ? T(0) : d[i + j], x[i + j], add);
      for (int s = 0; s < kSums; ++s) lanes[s][j] += add[s];
    }
    for (int64_t j = 0; j < kLanes; ++j) out[i + j] = result[j];
  }
  for (int64_t j = 0; i + j < n; ++j) {
    double add[kSums > 0 ? kSums : 1] = {};
    const T result = f(y[i + j], d == nullptr ? T(0) : d[i + j], x[i + j], add);
    for (int s = 0; s < kSums; ++s) lanes[s][j] += add[s];
    out[i + j] = result;
  }
  for (int s = 0; s < kSums; ++s) {
    fold(lanes[s], kLanes, 1);
    sums[s] = lanes[s][0];
  }
}

// All blocks of all rows. `run(y, d, x, out, n, sums)` does one block; d is null for ops without a direction.
// Returns the (k, kSums) sums.
template <typename T, typename Run>
std::vector<double> for_blocks(const Tensor& y, const Tensor* d, const Tensor& x, const Tensor& out,
                               int n_sums, const Run& run) {
  const Rows rows = rows_of(y, "y");
  const Rows out_rows = rows_of(out, "out");
  const Rows d_rows = d == nullptr ? Rows{0, 0, 0} : rows_of(*d, "direction");
  const T* y_data = y.const_data_ptr<T>();
  const T* d_data = d == nullptr ? nullptr : d->const_data_ptr<T>();
  const T* x_data = x.const_data_ptr<T>();
  T* out_data = out.mutable_data_ptr<T>();
  const int64_t blocks = (rows.n + kBlock - 1) / kBlock;
  std::vector<double> partial(static_cast<size_t>(std::max<int64_t>(rows.k * blocks * n_sums, 1)));

  torch::stable::parallel_for(0, rows.k * blocks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b / blocks;
      const int64_t at = (b % blocks) * kBlock;
      const T* direction = d_data == nullptr ? nullptr : d_data + row * d_rows.stride + at;
      run(y_data + row * rows.stride + at, direction, x_data + at, out_data + row * out_rows.stride + at,
          std::min(kBlock, rows.n - at), partial.data() + b * n_sums);
    }
  });

  std::vector<double> sums(static_cast<size_t>(rows.k * n_sums), 0.0);
  for (int64_t row = 0; row < rows.k && blocks > 0; ++row)
    for (int s = 0; s < n_sums; ++s) {
      double* first = partial.data() + row * blocks * n_sums + s;
      fold(first, blocks, n_sums);
      sums[static_cast<size_t>(row * n_sums + s)] = *first;
    }
  return sums;
}

// The sums as the float64 tensor an op returns: (kSums,) for (n,), (k, kSums) for (k, n).
inline Tensor sums_tensor(const Tensor& y, const std::vector<double>& sums, int64_t n_sums) {
  const int64_t shape[2] = {y.dim() == 2 ? y.size(0) : n_sums, n_sums};
  Tensor result = torch::stable::new_empty(y, {shape, static_cast<size_t>(y.dim())},
                                           std::make_optional(ScalarType::Double));
  std::copy(sums.begin(), sums.end(), result.mutable_data_ptr<double>());
  return result;
}

}  // namespace lbgap
