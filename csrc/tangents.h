// The arithmetic of the tangents, once, for whoever loops over them.
//
// The tangents of k vectors lie as (batch, k, ...) beside values (batch, ...) that all of them share. They
// are float32, float64 or bfloat16; the arithmetic and the shared values of the last are float32, and a
// result is rounded once.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "box.h"

namespace lbgap {

struct Bfloat16 {
  uint16_t bits;
};

// The type of the arithmetic on tangents of type T, and of the values that they share.
template <typename T>
struct MathOf {
  using type = T;
};

template <>
struct MathOf<Bfloat16> {
  using type = float;
};

template <typename T>
using Math = typename MathOf<T>::type;

LBGAP_INLINE float widen(float value) { return value; }
LBGAP_INLINE double widen(double value) { return value; }
LBGAP_INLINE float widen(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// The nearest number of type T, of two that are as near the even one; NaN stays NaN.
template <typename T>
LBGAP_INLINE T narrow(Math<T> value) {
  if constexpr (sizeof(T) == sizeof(Math<T>)) {
    return value;
  } else {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>(value == value ? nearest : 0x7fc0u)};
  }
}

// An activation y = f(x): R{y} = f' R{x}.
template <typename M>
LBGAP_INLINE M scaled(M t, M first) {
  return first * t;
}

// Its gradient g_x = f' g: R{g_x} = f' R{g} + f'' g R{x}, curve = f'' g.
template <typename M>
LBGAP_INLINE M curved(M r, M first, M curve, M t) {
  return first * r + curve * t;
}

// The loss -log p[target] of logits: its Hessian in them, diag(p) - p p', times R{logits}; `along` is p .
// R{logits}.
template <typename M>
LBGAP_INLINE M centred(M t, M p, M along, M weight) {
  return weight * (p * (t - along));
}

// A batch-norm by running statistics y = s x^ + b: R{y} = scale R{x} + R{s} x^ + R{b}. Backwards the same
// map, without the last term, is that of R{g_x}. What is not there is a null pointer: zero times an infinite
// value is not zero.
template <typename T>
struct Affine {
  const T* t;
  const Math<T>* scale;
  const Math<T>* slopes;
  const Math<T>* values;
  const Math<T>* shifts;
  T* out;

  // Element i of all tangents; its channel, the same for its vector and channel, and element v of the values.
  LBGAP_INLINE void operator()(int64_t i, int64_t channel, int64_t own, int64_t v) const {
    Math<T> y = scale[channel] * widen(t[i]);
    if (slopes != nullptr) y += slopes[own] * values[v];
    if (shifts != nullptr) y += shifts[own];
    out[i] = narrow<T>(y);
  }
};

// Max-pooling in two dimensions; in one, the first has one element and a kernel of one.
struct Windows {
  int64_t before[2];
  int64_t after[2];
  int64_t kernel[2];
  int64_t stride[2];
  int64_t padding[2];
  int64_t dilation[2];

  // Which windows may cover element j of a dimension: the first, and one beyond the last.
  LBGAP_INLINE int64_t first(int d, int64_t j) const {
    const int64_t beyond = j + padding[d] - dilation[d] * (kernel[d] - 1);
    return beyond <= 0 ? 0 : (beyond + stride[d] - 1) / stride[d];
  }
  LBGAP_INLINE int64_t last(int d, int64_t j) const {
    const int64_t end = (j + padding[d]) / stride[d] + 1;
    return end < after[d] ? end : after[d];
  }

  // The sum over the windows whose largest element is j, in a plane.
  template <typename T>
  LBGAP_INLINE T sum(const T* r, const int64_t* places, int64_t j) const {
    const int64_t row = j / before[1];
    const int64_t column = j % before[1];
    Math<T> total = 0;
    for (int64_t y = first(0, row); y < last(0, row); ++y)
      for (int64_t x = first(1, column); x < last(1, column); ++x) {
        const int64_t i = y * after[1] + x;
        if (places[i] == j) total += widen(r[i]);
      }
    return narrow<T>(total);
  }
};

// An element of a plane of `before` of them; NaN where there is no such place.
template <typename T>
LBGAP_INLINE T picked(const T* t, int64_t place, int64_t before) {
  return place >= 0 && place < before ? t[place] : narrow<T>(Math<T>(NAN));
}

}  // namespace lbgap
