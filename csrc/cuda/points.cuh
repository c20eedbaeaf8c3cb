// What the ops on many points share on the GPU.

#pragma once

#include "../points.h"
#include "../points_checks.h"
#include "reduce.cuh"

namespace lbgap {

// One number of a combination of j ends that lie `stride` apart, in their order: it is summed in float64.
// Ends of coefficient zero take no part.
template <typename T>
__device__ inline double combine(const double* coefficients, int64_t j, const T* end, int64_t stride) {
  double sum = 0.0;
  bool begun = false;
  for (int64_t e = 0; e < j; ++e) {
    const double c = coefficients[e];
    if (c == 0.0) continue;
    const double term = c * double(end[e * stride]);
    sum = begun ? sum + term : term;
    begun = true;
  }
  return sum;
}

// The logit of the right class, NaN where there is no such class.
template <typename T>
__device__ inline T right_of(const T* logits, int64_t stride, int64_t classes, int64_t target) {
  return target >= 0 && target < classes ? logits[target * stride] : static_cast<T>(__builtin_nan(""));
}

}  // namespace lbgap
