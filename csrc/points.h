// The arithmetic of many points at once, for whoever loops over points, samples and classes: exponential and
// logarithm that compilers vectorise, and the cross-entropy of one sample.

#pragma once

#include <cstdint>
#include <type_traits>

#include "box.h"

namespace lbgap {

constexpr int kWidest = 128;     // units of a layer of a narrow chain
constexpr int kMostLayers = 64;  // of one

// An integer as wide as a number.
template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <int N>
constexpr double kFactorial = N * kFactorial<N - 1>;
template <>
inline constexpr double kFactorial<0> = 1.0;

// Of r^N / N! + r^(N + 1) / (N + 1)! + ... what remains without r^N: from N = 0 on exp(r), to the last place
// for |r| <= log(2) / 2.
template <typename T, int N>
LBGAP_INLINE T exp_series([[maybe_unused]] T r) {
  constexpr T kCoefficient = T(1.0 / kFactorial<N>);
  if constexpr (N == (sizeof(T) == 4 ? 7 : 13))
    return kCoefficient;
  else
    return kCoefficient + r * exp_series<T, N + 1>(r);
}

// exp(x) for x <= 0, to about one unit in the last place; 0 where it is below the smallest normal number, NaN
// for NaN.
template <typename T>
LBGAP_INLINE T exp_negative(T x) {
  constexpr bool kSingle = sizeof(T) == 4;
  constexpr T kLeast = kSingle ? T(-86) : T(-707);
  constexpr T kRound =
      kSingle ? T(12582912) : T(6755399441055744);  // 1.5 * 2^(mantissa): its last bits are an integer
  constexpr T kHigh = kSingle ? T(0x1.63p-1) : T(0x1.62e42feep-1);  // log(2), times an integer exact
  constexpr T kLow = kSingle ? T(-2.12194440e-4) : T(0x1.a39ef35793c76p-33);
  const T bounded = x >= kLeast ? x : kLeast;
  const T shifted = bounded * T(1.4426950408889634) + kRound;
  const T n = shifted - kRound;
  const T r = (bounded - n * kHigh) - n * kLow;
  const Bits<T> power = __builtin_bit_cast(Bits<T>, shifted) << (kSingle ? 23 : 52);
  const T value = __builtin_bit_cast(T, __builtin_bit_cast(Bits<T>, exp_series<T, 0>(r)) + power);
  return x >= kLeast ? value : (x == x ? T(0) : x);
}

// The sum of f^(2n) / (2n + 1) from n = N on, over f^(2N).
template <int N>
LBGAP_INLINE double atanh_series([[maybe_unused]] double square) {
  if constexpr (N > 10)
    return 0.0;
  else
    return 1.0 / (2 * N + 1) + square * atanh_series<N + 1>(square);
}

// log(x) for a normal x > 0, to about one unit in the last place; NaN for NaN.
LBGAP_INLINE double log_positive(double x) {
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd;
  const uint64_t above = __builtin_bit_cast(uint64_t, x) -
                         kRootHalf;  // the exponent, once the mantissa is in [sqrt(1/2), sqrt(2))
  // An integer in the last bits of 2^52 is one added to it; 1023 more keep it positive.
  const double exponent =
      __builtin_bit_cast(double, ((above + (uint64_t(1023) << 52)) >> 52) | 0x4330000000000000) -
      (4503599627370496.0 + 1023.0);
  const double m = __builtin_bit_cast(double, (above & 0x000fffffffffffff) + kRootHalf);
  const double f = (m - 1.0) / (m + 1.0);
  const double value = exponent * 0x1.62e42fefa39efp-1 + 2.0 * f * atanh_series<0>(f * f);
  return x == x ? value : x;
}

// The logits of one sample, seen in groups of classes: all of a group in top(), then all of them in add().
template <typename T>
struct CrossEntropy {
  static constexpr T kInfinity = static_cast<T>(__builtin_inf());

  T largest;
  T sum;         // of exp(logit - largest)
  int32_t best;  // the first class that has the largest logit; the first that is NaN, as torch has it

  static LBGAP_INLINE CrossEntropy start() { return {-kInfinity, T(0), 0}; }

  LBGAP_INLINE void top(T logit, int32_t label) {
    const bool take = !(logit <= largest) & (largest == largest);
    largest = take ? logit : largest;
    best = take ? label : best;
  }

  // Before the first add() of a group, with the largest logit of the groups before it.
  LBGAP_INLINE void rescale(T before) {
    sum = before == largest ? sum : sum * exp_negative(before - largest);
  }

  LBGAP_INLINE void add(T logit) { sum += exp_negative(logit - (largest == -kInfinity ? T(0) : largest)); }

  // What another part of the classes adds.
  LBGAP_INLINE void merge(const CrossEntropy& other) {
    const bool nan = largest != largest;
    const bool other_nan = other.largest != other.largest;
    const bool same = (nan & other_nan) | (other.largest == largest);
    const bool take = (other.largest > largest) | (other_nan & !nan) | (same & (other.best < best));
    CrossEntropy rest = other;
    const T before = largest;
    const T other_before = other.largest;
    largest = take ? other.largest : largest;
    best = take ? other.best : best;
    rest.largest = largest;
    rescale(before);
    rest.rescale(other_before);
    sum += rest.sum;
  }

  // The loss, from the logit of the right class. It is infinite where it is beyond the range of T, as torch
  // has it.
  LBGAP_INLINE double loss(T right) const { return double(largest - right) + log_positive(double(sum)); }
};

}  // namespace lbgap
