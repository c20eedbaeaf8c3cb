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

// What the history ops do to one coordinate. Sums start at start(s) and are put together by join(s, a, b).

// A point of the segment from x to z, projected.
template <typename T>
struct LineStep {
  static constexpr int kSums = 0;
  Bounds<T> bounds;
  T alpha;

  LBGAP_INLINE T operator()(T x, T z, T lower, T upper, double* /*sums*/) const {
    return bounds.project(x + alpha * (z - x), lower, upper);
  }
};

// Along d = z - x: <g, d>, |d|^2, and the longest step inside the bounds, which is a minimum.
template <typename T>
struct Line {
  static constexpr int kSums = 3;
  Bounds<T> bounds;

  static LBGAP_INLINE double start(int s) { return s == 2 ? __builtin_inf() : 0.0; }
  static LBGAP_INLINE double join(int s, double a, double b) { return s == 2 ? (b < a ? b : a) : a + b; }

  LBGAP_INLINE void operator()(T g, T x, T z, T lower, T upper, double* sums) const {
    const double d = double(z) - double(x);
    sums[0] += double(g) * d;
    sums[1] += d * d;
    const double wall = d > 0 ? double(bounds.high(upper)) : double(bounds.low(lower));
    const double room = (wall - double(x)) / d;
    const double step = d == 0 ? __builtin_inf() : (room > 0 ? room : 0.0);
    sums[2] = step < sums[2] ? step : sums[2];
  }
};

// Where the projected gradient path leaves the bounds. `least` and `most` are over the finite breakpoints
// above zero, `projected` is the largest coordinate of |P(x - g) - x|.
template <typename T>
struct Breakpoint {
  Bounds<T> bounds;

  LBGAP_INLINE T operator()(T x, T g, T lower, T upper, T& least, T& most, T& projected) const {
    const T t = bounds.breakpoint(x, g, lower, upper);
    const T size = g < T(0) ? -g : g;
    const T moved = size * (t < T(1) ? t : T(1));
    const T finite = t < T(__builtin_inf()) ? t : T(0);
    const T above = finite > T(0) ? finite : T(__builtin_inf());
    projected = moved > projected ? moved : projected;
    least = above < least ? above : least;
    most = finite > most ? finite : most;
    return t;
  }
};

// The point of the path at t, from the coordinate's own breakpoint.
template <typename T>
LBGAP_INLINE T path_point(const Bounds<T>& bounds, double t, T breakpoint, T x, T g, T lower, T upper) {
  const T inside = bounds.project(x - static_cast<T>(t) * g, lower, upper);
  const T moved = double(breakpoint) <= t ? bounds.wall(g, lower, upper) : inside;
  return g == T(0) ? x : moved;
}

// The subspace step -h / theta, added where the point is free.
template <typename T>
struct Combine {
  Bounds<T> bounds;
  double theta;
  bool project;

  LBGAP_INLINE double gradient(T y, T x, T g) const { return double(g) + theta * (double(y) - double(x)); }

  LBGAP_INLINE T operator()(T y, double h, T lower, T upper) const {
    const T moved = static_cast<T>(double(y) - h / theta);
    const T end_point = project ? bounds.project(moved, lower, upper) : moved;
    return bounds.free(y, lower, upper) ? end_point : y;
  }
};

}  // namespace lbgap
