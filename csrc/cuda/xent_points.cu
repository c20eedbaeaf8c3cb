// xent_points on the GPU: summed cross-entropy and number of correct samples of k sets of logits. A block
// takes kThreads samples of one point: a thread each, or a warp for one after the other where the classes of
// a sample lie side by side and are many.

#include <torch/csrc/stable/library.h>

#include "points.cuh"

namespace lbgap {
namespace {

constexpr int64_t kGroup = 32;  // classes that a thread looks at before it sums their exponentials
constexpr int kAtOnce = 4;      // classes that a lane of a warp takes

// The logits; strides in elements.
template <typename T>
struct Logits {
  const T* data;
  int64_t point;
  int64_t sample;
  int64_t label;
  int64_t classes;
};

template <typename T>
__device__ CrossEntropy<T> by_thread(const T* row, int64_t stride, int64_t classes) {
  auto e = CrossEntropy<T>::start();
  for (int64_t first = 0; first < classes; first += kGroup) {
    const int64_t end = first + kGroup < classes ? first + kGroup : classes;
    const T before = e.largest;
#pragma unroll 4
    for (int64_t c = first; c < end; ++c) e.top(row[c * stride], static_cast<int32_t>(c));
    e.rescale(before);
#pragma unroll 2
    for (int64_t c = first; c < end; ++c) e.add(row[c * stride]);
  }
  return e;
}

// Valid in lane 0.
template <typename T>
__device__ CrossEntropy<T> by_warp(const T* row, int64_t classes) {
  auto e = CrossEntropy<T>::start();
  for (int64_t first = threadIdx.x % kWarp; first < classes; first += kAtOnce * kWarp) {
    T logits[kAtOnce];
    const T before = e.largest;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t c = first + u * kWarp;
      logits[u] = c < classes ? row[c] : -CrossEntropy<T>::kInfinity;
      if (c < classes) e.top(logits[u], static_cast<int32_t>(c));
    }
    e.rescale(before);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (first + u * kWarp < classes) e.add(logits[u]);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    e.merge({__shfl_down_sync(kFull, e.largest, offset), __shfl_down_sync(kFull, e.sum, offset),
             __shfl_down_sync(kFull, e.best, offset)});
  return e;
}

template <bool kWide, typename T>
__global__ void __launch_bounds__(kThreads)
    xent_kernel(Logits<T> logits, const int64_t* targets, int64_t k, int64_t samples, double* partial) {
  const int64_t tiles = (samples + kThreads - 1) / kThreads;
  for (int64_t at = blockIdx.x; at < k * tiles; at += gridDim.x) {
    const T* data = logits.data + at / tiles * logits.point;
    const int64_t begin = at % tiles * kThreads;
    const int64_t end = begin + kThreads < samples ? begin + kThreads : samples;
    double loss = 0.0;
    double correct = 0.0;
    const int64_t step = kWide ? kThreads / kWarp : kThreads;
    for (int64_t i = begin + (kWide ? threadIdx.x / kWarp : threadIdx.x); i < end; i += step) {
      const T* row = data + i * logits.sample;
      CrossEntropy<T> e;
      if constexpr (kWide)
        e = by_warp(row, logits.classes);
      else
        e = by_thread(row, logits.label, logits.classes);
      if (kWide && threadIdx.x % kWarp != 0) continue;
      loss += e.loss(right_of(row, logits.label, logits.classes, targets[i]));
      correct += e.best == targets[i] ? 1.0 : 0.0;
    }
    loss = block_sum<Plain>(0, loss);
    correct = block_sum<Plain>(0, correct);
    if (threadIdx.x == 0) {
      partial[2 * at] = loss;
      partial[2 * at + 1] = correct;
    }
  }
}

Tensor xent_points(const Tensor& logits, const Tensor& targets) {
  check_xent(logits, targets);
  const Device device(logits);
  const int64_t k = logits.size(0);
  const int64_t samples = logits.size(1);
  const int64_t tiles = (samples + kThreads - 1) / kThreads;
  const Tensor partial = scratch(logits, {k, tiles, 2});
  const Tensor sums = scratch(logits, {k, 2});
  by_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    const Logits<T> all{logits.const_data_ptr<T>(), logits.stride(0), logits.stride(1), logits.stride(2),
                        logits.size(2)};
    const bool wide = all.label == 1 && all.classes > kWarp;
    device.run(wide ? xent_kernel<true, T> : xent_kernel<false, T>, k * tiles, kThreads, all,
               targets.const_data_ptr<int64_t>(), k, samples, data_of(partial));
  });
  fold<Plain>(device, partial, k, tiles, 2, sums);
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("xent_points", TORCH_BOX(&lbgap::xent_points)); }
