// The arithmetic of bound-constrained steps, once, for whoever loops over the coordinates.

#pragma once

#include "box.h"

namespace lbgap {

// The bounds lower - (a + b |lower|) and upper + (a + b |upper|) of one coordinate. With lower = upper =
// centre they are those of the Box, to the bit; with a = b = 0 they are any two vectors, infinite ones too.
template <typename T>
struct Bounds {
  T absolute;
  T relative;

  LBGAP_INLINE T width(T x) const {
    return relative == T(0) ? absolute : Box<T>{absolute, relative}.half_width(x);
  }
  LBGAP_INLINE T low(T lower) const { return lower - width(lower); }
  LBGAP_INLINE T high(T upper) const { return upper + width(upper); }

  LBGAP_INLINE T project(T y, T lower, T upper) const {
    const T l = low(lower);
    const T u = high(upper);
    y = y < l ? l : y;
    return y > u ? u : y;
  }

  // Where x - t g leaves the bounds: t >= 0, infinite where it never does.
  LBGAP_INLINE T breakpoint(T x, T g, T lower, T upper) const {
    const T room = g > T(0) ? x - low(lower) : x - high(upper);
    const T t = room / g;
    return g == T(0) ? T(__builtin_inf()) : (t > T(0) ? t : T(0));
  }

  // The bound that x - t g runs into.
  LBGAP_INLINE T wall(T g, T lower, T upper) const { return g > T(0) ? low(lower) : high(upper); }

  LBGAP_INLINE bool free(T y, T lower, T upper) const { return y > low(lower) && y < high(upper); }
};

}  // namespace lbgap
