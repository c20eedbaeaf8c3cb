// What the history ops share on the GPU: the rows of the history, and how coordinates are shared out.

#pragma once

#include "../history.h"
#include "../history_checks.h"
#include "reduce.cuh"

namespace lbgap {

// The 2c rows W = [Y; S].
template <typename T>
struct History {
  const T* S;
  const T* Y;
  int64_t s_stride;
  int64_t y_stride;
  int64_t c;

  __device__ const T* row(int64_t k) const { return k < c ? Y + k * y_stride : S + (k - c) * s_stride; }
};

template <typename T>
History<T> history_of(const Tensor& S, const Tensor& Y) {
  return {S.const_data_ptr<T>(), Y.const_data_ptr<T>(), rows_of(S, "S").stride, rows_of(Y, "Y").stride,
          S.size(0)};
}

template <typename T>
Bounds<T> bounds_of(double absolute, double relative) {
  return {static_cast<T>(absolute), static_cast<T>(relative)};
}

// A few numbers from the host, as parameters of a launch: neither a copy that waits nor memory that must
// stay.
constexpr int64_t kUpload = 400;
struct Upload {
  double value[kUpload];
};

static __global__ void upload_kernel(Upload from, double* to, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from.value[i];
}

inline Tensor upload(const Device& device, const Tensor& like, const double* values, int64_t count) {
  Tensor result = scratch(like, {count});
  for (int64_t at = 0; at < count; at += kUpload) {
    Upload part{};
    const int64_t size = std::min(kUpload, count - at);
    std::copy_n(values + at, size, part.value);
    device.run(upload_kernel, 1, kThreads, part, data_of(result) + at, size);
  }
  return result;
}

}  // namespace lbgap
