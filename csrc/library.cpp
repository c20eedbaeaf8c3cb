// Every operator's schema. Implementations register themselves in cpu/NAME.cpp and cuda/NAME.cu.
//
// The box is (centre x, absolute a, relative b): coordinate i may be anywhere in x_i -+ (a + b |x_i|).
// y, direction, gradient and out are (n,) or (k, n) with contiguous rows; centre is (n,). out may be y
// itself. All are float32 or all float64; the sums are float64, one row per row of y.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lbgap, m) {
  // out = y projected onto the box.
  m.def("box_project(Tensor y, Tensor centre, float absolute, float relative, Tensor(a!) out) -> ()");

  // out = y + alpha * direction projected onto the box.
  // Returns |out - y|^2, <direction, out - y> and the number of coordinates that the projection moved.
  m.def(
      "box_step(Tensor y, Tensor direction, float alpha, Tensor centre, float absolute, float relative, "
      "Tensor(a!) out) -> Tensor");

  // out = the vertex of the box that is furthest along the gradient; y where the gradient is zero.
  // Returns the Frank-Wolfe gap <gradient, out - y> and the number of coordinates where out differs from y.
  m.def(
      "box_vertex(Tensor y, Tensor gradient, Tensor centre, float absolute, float relative, "
      "Tensor(a!) out) -> Tensor");
}
