// Who loops over the tangents of k vectors on the GPU: a thread takes V neighbours of one sample and vector
// at a time, and what all vectors share beside them. No sum goes beyond a thread or a warp.

#pragma once

#include "../tangents_checks.h"
#include "launch.cuh"

namespace lbgap {

template <typename T, int V>
struct alignas(V * sizeof(T)) Neighbours {
  T value[V];
};

template <int V, typename T>
__device__ inline Neighbours<T, V> load(const T* from) {
  return *reinterpret_cast<const Neighbours<T, V>*>(from);
}

inline bool is_aligned(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (reinterpret_cast<uintptr_t>(t->const_data_ptr()) % 16 != 0) return false;
  return true;
}

// Calls f(i, shared): element i of all tangents and that of the shared values, V from there on.
template <int V, typename F>
__global__ void __launch_bounds__(kThreads) each_kernel(F f, int64_t count, int64_t k, int64_t size) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x; at < count; at += step) {
    const int64_t i = at * V;
    const int64_t row = i / size;
    f.template run<V>(i, row / k * size + i % size);
  }
}

// V neighbours are of one row where its size is a multiple of V.
template <int V, typename F>
void for_each(const Device& device, const F& f, const Tangents& n) {
  const int64_t count = n.batch * n.k * n.size / V;
  device.run(each_kernel<V, F>, (count + kThreads - 1) / kThreads, kThreads, f, count, n.k, n.size);
}

}  // namespace lbgap
