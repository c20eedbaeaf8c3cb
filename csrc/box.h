// The arithmetic of the box, once, for whoever loops over the coordinates.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define LBGAP_INLINE __host__ __device__ __forceinline__
#else
#define LBGAP_INLINE inline __attribute__((always_inline))
#endif

namespace lbgap {

// Half-width a + b |x| around the centre x. NaN in y or in a bound comes out as NaN, never as a number; an
// infinite centre has such a bound, inf - inf.
template <typename T>
struct Box {
  T absolute;
  T relative;

  LBGAP_INLINE T half_width(T x) const { return absolute + relative * (x < T(0) ? -x : x); }

  LBGAP_INLINE T project(T y, T x) const {
    const T r = half_width(x);
    const T lower = x - r;
    const T upper = x + r;
    T p = y < lower ? lower : y;
    p = p > upper ? upper : p;
    return lower <= upper ? p : lower + upper;
  }
};

// What box_project, box_step and box_vertex do to one coordinate. Each adds to kSums running sums.

template <typename T>
struct Project {
  static constexpr int kSums = 0;
  Box<T> box;

  LBGAP_INLINE T operator()(T y, T x, double* /*sums*/) const { return box.project(y, x); }
  LBGAP_INLINE T operator()(T y, T /*unused*/, T x, double* sums) const { return (*this)(y, x, sums); }
};

template <typename T>
struct Step {
  static constexpr int kSums = 3;  // squared length, slope, clipped
  Box<T> box;
  T alpha;

  LBGAP_INLINE T operator()(T y, T direction, T x, double* sums) const {
    const T free = y + alpha * direction;
    const T out = box.project(free, x);
    const double moved = double(out) - double(y);
    sums[0] += moved * moved;
    sums[1] += double(direction) * moved;
    sums[2] += out == free ? 0.0 : 1.0;
    return out;
  }
};

template <typename T>
struct Vertex {
  static constexpr int kSums = 2;  // gap, flips
  Box<T> box;

  LBGAP_INLINE T operator()(T y, T gradient, T x, double* sums) const {
    const T r = box.half_width(x);
    const T up = x + r;
    const T down = x - r;
    T out = gradient > T(0) ? up : y;
    out = gradient < T(0) ? down : out;
    out = gradient == gradient ? out : gradient;
    sums[0] += double(gradient) * (double(out) - double(y));
    sums[1] += out == y ? 0.0 : 1.0;
    return out;
  }
};

}  // namespace lbgap
