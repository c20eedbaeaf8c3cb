// chain_points on the GPU: many points of a chain of narrow layers. A block takes a tile of samples of one
// point, whose activations stay in shared memory through all layers, while weights are blended slab by slab.
// A thread has kOutputs outputs of some samples in registers, so that a layer may overwrite its input.

#include <torch/csrc/stable/library.h>

#include "points.cuh"

namespace lbgap {
namespace {

constexpr int kSlab = 8;     // inputs whose weights are in shared memory
constexpr int kOutputs = 4;  // of a thread
constexpr int kSampleThreads = kThreads / (kWidest / kOutputs);

template <typename T>
constexpr int kTile = 256 / sizeof(T);  // samples

template <typename T>
struct Chain {
  const double* coefficients;
  int64_t coefficient_stride;
  int64_t j;
  const T* first;
  int64_t first_end;  // strides of `first`
  int64_t first_feature;
  const T* ends;
  int64_t end_stride;
  const int64_t* targets;
  int64_t samples;
  int layers;
  int widths[kMostLayers];
};

// The first layer's outputs for the samples from `begin` on; zeros beyond the last one.
template <typename T>
__device__ void blend_first(const Chain<T>& chain, const double* coefficients, int64_t begin,
                            T (&tile)[kWidest][kTile<T>]) {
  for (int i = threadIdx.x; i < chain.widths[0] * kTile<T>; i += kThreads) {
    const int f = i / kTile<T>;
    const int s = i % kTile<T>;
    T sum = T(0);
    bool begun = false;
    for (int64_t e = 0; e < chain.j && begin + s < chain.samples; ++e) {
      const T c = static_cast<T>(coefficients[e]);
      if (c == T(0)) continue;
      const T term = c * chain.first[e * chain.first_end + f * chain.first_feature + begin + s];
      sum = begun ? sum + term : term;
      begun = true;
    }
    tile[f][s] = chain.layers > 1 && sum < T(0) ? T(0) : sum;
  }
}

// One layer on the tile, in place; `ends` are its weights and biases at the first end.
template <typename T>
__device__ void layer(const Chain<T>& chain, const double* coefficients, const T* ends, int inputs,
                      int outputs, bool relu, T (&tile)[kWidest][kTile<T>], T (&slab)[kSlab][kWidest]) {
  constexpr int kEach = kTile<T> / kSampleThreads;
  const int o = threadIdx.x / kSampleThreads * kOutputs;
  const int s = threadIdx.x % kSampleThreads;
  const int padded = (outputs + kOutputs - 1) / kOutputs * kOutputs;
  T sums[kOutputs][kEach];
#pragma unroll
  for (int r = 0; r < kOutputs; ++r) {
    const T* bias = ends + int64_t(outputs) * inputs + o + r;
    const T value =
        o + r < outputs ? static_cast<T>(combine(coefficients, chain.j, bias, chain.end_stride)) : T(0);
#pragma unroll
    for (int u = 0; u < kEach; ++u) sums[r][u] = value;
  }
  for (int begin = 0; begin < inputs; begin += kSlab) {
    for (int i = threadIdx.x; i < padded * kSlab; i += kThreads) {
      const int row = i / kSlab;
      const int column = begin + i % kSlab;
      T weight = T(0);
      if (row < outputs && column < inputs)
        weight = static_cast<T>(
            combine(coefficients, chain.j, ends + int64_t(row) * inputs + column, chain.end_stride));
      slab[i % kSlab][row] = weight;
    }
    __syncthreads();
    const int count = inputs - begin < kSlab ? inputs - begin : kSlab;
    if (o < outputs)
      for (int i = 0; i < count; ++i) {
        T x[kEach];
#pragma unroll
        for (int u = 0; u < kEach; ++u) x[u] = tile[begin + i][s + u * kSampleThreads];
#pragma unroll
        for (int r = 0; r < kOutputs; ++r) {
          const T weight = slab[i][o + r];
#pragma unroll
          for (int u = 0; u < kEach; ++u) sums[r][u] = fma(x[u], weight, sums[r][u]);
        }
      }
    __syncthreads();  // the slab is filled anew, and after the last one the tile overwritten
  }
#pragma unroll
  for (int r = 0; r < kOutputs; ++r)
    if (o + r < outputs)
#pragma unroll
      for (int u = 0; u < kEach; ++u)
        tile[o + r][s + u * kSampleThreads] = relu && sums[r][u] < T(0) ? T(0) : sums[r][u];
  __syncthreads();
}

template <typename T>
__global__ void __launch_bounds__(kThreads) chain_kernel(Chain<T> chain, int64_t k, double* partial) {
  __shared__ T tile[kWidest][kTile<T>];
  __shared__ T slab[kSlab][kWidest];
  const int64_t tiles = (chain.samples + kTile<T> - 1) / kTile<T>;
  const int classes = chain.widths[chain.layers - 1];
  for (int64_t at = blockIdx.x; at < k * tiles; at += gridDim.x) {
    const double* coefficients = chain.coefficients + at / tiles * chain.coefficient_stride;
    const int64_t begin = at % tiles * kTile<T>;
    blend_first(chain, coefficients, begin, tile);
    __syncthreads();
    const T* ends = chain.ends;
    for (int l = 1; l < chain.layers; ++l) {
      const int inputs = chain.widths[l - 1];
      const int outputs = chain.widths[l];
      layer(chain, coefficients, ends, inputs, outputs, l + 1 < chain.layers, tile, slab);
      ends += int64_t(outputs) * (inputs + 1);
    }
    double loss = 0.0;
    double correct = 0.0;
    const int64_t i = begin + threadIdx.x;
    if (threadIdx.x < kTile<T> && i < chain.samples) {
      const T* logits = &tile[0][threadIdx.x];
      auto e = CrossEntropy<T>::start();
      for (int c = 0; c < classes; ++c) e.top(logits[c * kTile<T>], c);
      for (int c = 0; c < classes; ++c) e.add(logits[c * kTile<T>]);
      loss = e.loss(right_of(logits, kTile<T>, classes, chain.targets[i]));
      correct = e.best == chain.targets[i] ? 1.0 : 0.0;
    }
    loss = block_sum<Plain>(0, loss);
    correct = block_sum<Plain>(0, correct);
    if (threadIdx.x == 0) {
      partial[2 * at] = loss;
      partial[2 * at + 1] = correct;
    }
  }
}

Tensor chain_points(const Tensor& coefficients, const Tensor& first, const Tensor& ends,
                    std::vector<int64_t> widths, const Tensor& targets) {
  check_chain(coefficients, first, ends, widths, targets, kWidest, kMostLayers);
  const Device device(first);
  const Rows c = rows_of(coefficients, "coefficients");
  const int64_t samples = first.size(2);
  const Tensor sums = scratch(first, {c.k, 2});
  by_dtype(first, [&](auto zero) {
    using T = decltype(zero);
    const int64_t tiles = (samples + kTile<T> - 1) / kTile<T>;
    Chain<T> chain{coefficients.const_data_ptr<double>(),
                   c.stride,
                   c.n,
                   first.const_data_ptr<T>(),
                   first.stride(0),
                   first.stride(1),
                   ends.const_data_ptr<T>(),
                   rows_of(ends, "ends").stride,
                   targets.const_data_ptr<int64_t>(),
                   samples,
                   static_cast<int>(widths.size()),
                   {}};
    std::copy(widths.begin(), widths.end(), chain.widths);
    const Tensor partial = scratch(first, {c.k, tiles, 2});
    device.run(chain_kernel<T>, c.k * tiles, kThreads, chain, c.k, data_of(partial));
    fold<Plain>(device, partial, c.k, tiles, 2, sums);
  });
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("chain_points", TORCH_BOX(&lbgap::chain_points)); }
