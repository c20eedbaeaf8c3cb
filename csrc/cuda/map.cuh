// Who loops over the coordinates on the GPU: one pass that reads some vectors, writes one, and sums.
//
// A block of threads takes kBlock coordinates of one row at a time, V neighbours a thread, 16 bytes, where
// all rows are aligned to that; all loads of a thread are under way before the first is used. The sums of a
// block go to their own place, and fold() adds them up.

#pragma once

#include <type_traits>
#include <utility>

#include "reduce.cuh"

namespace lbgap {

constexpr int64_t kBlock = 8192;

// The vectors that a pass reads: row r of vector j begins at data[j] + r * stride[j].
template <typename T, int kIn>
struct Inputs {
  const T* data[kIn];
  int64_t stride[kIn];
};

template <typename T>
struct Output {
  T* data;
  int64_t stride;
};

template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
  T value[V];
};

template <typename T, int kIn, typename F, size_t... I>
__device__ inline auto apply(const F& f, const T (&in)[kIn], double* sums, std::index_sequence<I...>) {
  return f(in[I]..., sums);
}

// Whether F makes a value of each coordinate, or only sums.
template <typename T, int kIn, typename F>
constexpr bool kWrites = !std::is_void_v<decltype(apply(
    std::declval<const F&>(), std::declval<const T (&)[kIn]>(), nullptr, std::make_index_sequence<kIn>{}))>;

template <typename T, int kIn, typename F>
__device__ inline void one(const F& f, const T (&in)[kIn], T* out, double* sums) {
  if constexpr (kWrites<T, kIn, F>)
    *out = apply(f, in, sums, std::make_index_sequence<kIn>{});
  else
    apply(f, in, sums, std::make_index_sequence<kIn>{});
}

template <int V, typename T, int kIn, typename F>
__global__ void __launch_bounds__(kThreads, 2)
    map_kernel(F f, Inputs<T, kIn> in, Output<T> out, int64_t k, int64_t n, double* partial) {
  constexpr int kSums = F::kSums > 0 ? F::kSums : 1;
  constexpr int kUnroll = 8 / kIn;
  constexpr int64_t kStep = kThreads * V;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  for (int64_t b = blockIdx.x; b < k * blocks; b += gridDim.x) {
    const int64_t row = b / blocks;
    const int64_t begin = b % blocks * kBlock;
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    T* to = kWrites<T, kIn, F> ? out.data + row * out.stride : nullptr;
    double sums[kSums];
    for (int s = 0; s < kSums; ++s) sums[s] = start<F>(s);
    for (int64_t i = begin + threadIdx.x * V; i < end; i += kUnroll * kStep) {
      Pack<T, V> packs[kUnroll][kIn];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (i + u * kStep + V <= end)
#pragma unroll
          for (int j = 0; j < kIn; ++j)
            packs[u][j] =
                *reinterpret_cast<const Pack<T, V>*>(in.data[j] + row * in.stride[j] + i + u * kStep);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = i + u * kStep;
        if (at + V <= end) {
          Pack<T, V> result;
#pragma unroll
          for (int e = 0; e < V; ++e) {
            T values[kIn];
#pragma unroll
            for (int j = 0; j < kIn; ++j) values[j] = packs[u][j].value[e];
            one(f, values, &result.value[e], sums);
          }
          if constexpr (kWrites<T, kIn, F>) *reinterpret_cast<Pack<T, V>*>(to + at) = result;
        } else {
          for (int64_t e = at; e < end; ++e) {
            T values[kIn];
#pragma unroll
            for (int j = 0; j < kIn; ++j) values[j] = in.data[j][row * in.stride[j] + e];
            one(f, values, to + e, sums);
          }
        }
      }
    }
    if constexpr (F::kSums > 0)
      for (int s = 0; s < kSums; ++s) {
        const double sum = block_sum<F>(s, sums[s]);
        if (threadIdx.x == 0) partial[b * kSums + s] = sum;
      }
  }
}

inline bool aligned(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}

// Runs f over the coordinates of y, (n,) or (k, n); a vector (n,) serves every row. Returns the sums as the
// ops do, (F::kSums,) or (k, F::kSums); `out` may be null where f only sums.
template <typename T, int kIn, typename F>
Tensor map(const Device& device, const F& f, const Tensor& y, const Tensor* const (&in)[kIn],
           const Tensor* out) {
  constexpr int kWide = 16 / sizeof(T);
  const Rows rows = rows_of(y, "y");
  Inputs<T, kIn> from;
  Output<T> to{nullptr, 0};
  bool wide = true;
  for (int j = 0; j < kIn; ++j) {
    from.data[j] = in[j]->template const_data_ptr<T>();
    from.stride[j] = in[j]->dim() == 1 ? 0 : rows_of(*in[j], "input").stride;
    wide = wide && aligned(from.data[j], rows.k > 1 ? from.stride[j] * int64_t(sizeof(T)) : 0);
  }
  if (out != nullptr) {
    to = {out->mutable_data_ptr<T>(), rows_of(*out, "out").stride};
    wide = wide && aligned(to.data, rows.k > 1 ? to.stride * int64_t(sizeof(T)) : 0);
  }
  const int64_t blocks = (rows.n + kBlock - 1) / kBlock;
  const Tensor partial = scratch(y, {rows.k * blocks * F::kSums});
  const Tensor sums = y.dim() == 1 ? scratch(y, {F::kSums}) : scratch(y, {rows.k, F::kSums});
  device.run(wide ? map_kernel<kWide, T, kIn, F> : map_kernel<1, T, kIn, F>, rows.k * blocks, kThreads, f,
             from, to, rows.k, rows.n, data_of(partial));
  if constexpr (F::kSums > 0) fold<F>(device, partial, rows.k, blocks, F::kSums, sums);
  return sums;
}

}  // namespace lbgap
