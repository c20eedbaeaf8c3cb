// The walk along the projected gradient path from bucket to bucket (history_cauchy), once, for whoever fills
// the buckets.
//
// Breakpoints are numbered by the bits of their t, which are in the order of t. A range of numbers is divided
// into kBuckets buckets; each keeps, over its coordinates, the sums of g w for the rows w of the history and
// for g itself, of t g w likewise, and their number. The bucket behind the last is for coordinates that never
// meet a bound.

#pragma once

#include <cstdint>

#include "box.h"

namespace lbgap {

constexpr int64_t kBuckets = 256;

template <typename T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Type = uint32_t;
};
template <>
struct KeyOf<double> {
  using Type = uint64_t;
};
template <typename T>
using Key = typename KeyOf<T>::Type;

template <typename T>
LBGAP_INLINE Key<T> key_of(T t) {
  return __builtin_bit_cast(Key<T>, t);
}

template <typename T>
LBGAP_INLINE double value_of(uint64_t key) {
  return double(__builtin_bit_cast(T, static_cast<Key<T>>(key)));
}

// Where a bucket's sums stand: of g w from 0, of t g w from `padded`, the number of coordinates behind them.
struct Layout {
  int64_t rows;
  int64_t padded;
  int64_t stride;
  LBGAP_INLINE explicit Layout(int64_t count)
      : rows(count), padded((count + 8) / 8 * 8), stride(2 * padded + 8) {}
  LBGAP_INLINE int64_t table() const { return (kBuckets + 1) * stride; }
  LBGAP_INLINE int64_t number() const { return 2 * padded; }
};

// How far a range of keys is shifted to number its buckets.
LBGAP_INLINE int shift_of(uint64_t width) {
  int shift = 0;
  while ((width >> shift) >= uint64_t(kBuckets)) ++shift;
  return shift;
}

// The model's derivatives along the path, from the sums over all moving coordinates and over those that have
// met their bounds; entry i of those is at i * step.
struct Path {
  Layout layout;
  const double* K;
  double theta;
  const double* all;
  const double* hit;
  int64_t step = 1;

  LBGAP_INLINE double left(int64_t i) const { return all[i] - hit[i * step]; }
  LBGAP_INLINE bool over() const { return left(layout.number()) == 0; }

  // Entry i of W (z(t) - x).
  LBGAP_INLINE double point(int64_t i, double t) const { return point(i, t, over() ? 0.0 : -left(i)); }

  // First and second derivative at t while nothing else is hit.
  LBGAP_INLINE void slope(double t, double& first, double& second) const {
    const double g2 = left(layout.rows);
    double with_c = 0.0;
    double with_p = 0.0;
    const bool none = over();
    for (int64_t i = 0; i < layout.rows && !none; ++i) {
      const double p_i = -left(i);
      for (int64_t j = 0; j < layout.rows; ++j) {
        const double p_j = -left(j);
        const double k = p_i * K[i * layout.rows + j];
        with_c += k * point(j, t, p_j);
        with_p += k * p_j;
      }
    }
    first = -g2 + theta * t * g2 - with_c;
    second = theta * g2 - with_p;
  }

  LBGAP_INLINE bool rises(double t) const {
    double first, second;
    slope(t, first, second);
    return first >= 0;
  }

  // Where the derivative is zero if it is negative at t and nothing else is hit.
  LBGAP_INLINE double minimizer(double t) const {
    if (over()) return t;
    double first, second;
    slope(t, first, second);
    return second > 0 ? t - first / second : t;
  }

 private:
  LBGAP_INLINE double point(int64_t i, double t, double p) const {
    return t * p - hit[(layout.padded + i) * step];
  }
};

// How the walk passes one bucket of keys first .. last that is not empty, `before` and `after` its
// coordinates are hit: it goes on, the minimizer lies before the bucket, or inside it.
enum class Pass { kOn, kBefore, kInside };

template <typename T>
LBGAP_INLINE Pass pass_bucket(const Path& before, const Path& after, uint64_t first, uint64_t last) {
  if (before.rises(value_of<T>(first))) return Pass::kBefore;
  return after.over() || after.rises(value_of<T>(last)) ? Pass::kInside : Pass::kOn;
}

// The minimizer that lies between the bucket passed last, which ended at t, and `end`.
LBGAP_INLINE double minimizer_before(const Path& path, double t, double end) {
  const double found = path.minimizer(t);
  return found < t ? t : (found > end ? end : found);
}

}  // namespace lbgap
