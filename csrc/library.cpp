// Every operator's schema. Implementations register themselves in cpu/NAME.cpp and cuda/NAME.cu.
//
// The box is (centre x, absolute a, relative b): coordinate i may be anywhere in x_i -+ (a + b |x_i|).
// y, direction, gradient and out are (n,) or (k, n) with contiguous rows; centre is (n,). out may be y
// itself. All are float32 or all float64; the sums are float64, one row per row of y.
//
// Points are combinations of ends: coefficients (k, j) float64. Where one is exactly 0 the end takes no part,
// so that what is not finite in it does not matter.
//
// The random matrix A is (n, p), drawn as rng.h says and never stored: distribution 0 is normal, 1 uniform on
// [-1, 1), 2 rademacher; `first` is the index of its first row. centre, g and out are float32 or float64.

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

  // The rest is limited-memory BFGS with bounds, on n coordinates. The bounds of a coordinate are
  // lower - (absolute + relative |lower|) and upper + (absolute + relative |upper|). S and Y hold c pairs of
  // differences, (c, n), in any order; their 2c rows [Y; S] are called W, and B = theta I - W' K W.

  // S[row] = x_new - x and Y[row] = g_new - g; returns the inner products of every pair with that one:
  // S.s, S.y, Y.s, Y.y, (c, 4).
  m.def(
      "history_append(Tensor x_new, Tensor x, Tensor g_new, Tensor g, Tensor(a!) S, Tensor(b!) Y, int row) "
      "-> "
      "Tensor");

  // out = the generalized Cauchy point: the first minimizer of the quadratic model along the projected
  // gradient. Returns t, where it is on the path, the largest projected gradient |P(x - g) - x|, then W (out
  // - x): (2 + 2c,).
  m.def(
      "history_cauchy(Tensor x, Tensor g, Tensor S, Tensor Y, Tensor K, float theta, Tensor lower, Tensor "
      "upper, "
      "float absolute, float relative, Tensor(a!) out) -> Tensor");

  // Inner products over the coordinates where y is strictly inside the bounds, of the rows of W and of
  // h = g + theta (y - x): (2c + 1, 2c + 1).
  m.def(
      "history_gram(Tensor y, Tensor x, Tensor g, Tensor S, Tensor Y, float theta, Tensor lower, Tensor "
      "upper, "
      "float absolute, float relative) -> Tensor");

  // y += -(h + W' q) / theta where y is strictly inside the bounds; the result is projected on request.
  m.def(
      "history_combine(Tensor(a!) y, Tensor x, Tensor g, Tensor S, Tensor Y, Tensor q, float theta, Tensor "
      "lower, "
      "Tensor upper, float absolute, float relative, bool project) -> ()");

  // Along d = z - x: <g, d>, |d|^2, and the longest step from x along d inside the bounds: (3,).
  m.def(
      "history_line(Tensor g, Tensor x, Tensor z, Tensor lower, Tensor upper, float absolute, float "
      "relative) -> "
      "Tensor");

  // out = x + alpha (z - x), projected.
  m.def(
      "history_step(Tensor x, Tensor z, float alpha, Tensor lower, Tensor upper, float absolute, float "
      "relative, "
      "Tensor(a!) out) -> ()");

  // out = centre + A z for z (p,) or (k, p), float64. out may be the centre where there is one point.
  m.def(
      "subspace_apply(Tensor centre, Tensor z, int distribution, int seed, int stream, int first, "
      "Tensor(a!) out) -> ()");

  // A'g in float64, (p,) or (k, p).
  m.def("subspace_project(Tensor g, int p, int distribution, int seed, int stream, int first) -> Tensor");

  // A'A in float64, (p, p), on the device of `like`.
  m.def(
      "subspace_gram(Tensor like, int n, int p, int distribution, int seed, int stream, int first) -> "
      "Tensor");

  // Tangents t of k vectors are (batch, k, ...), float32, float64 or bfloat16, and share the other values of
  // a sample, in the dtype of t or float32 for bfloat16. All are contiguous; out may be t.

  // out = first * t, with first (batch, ...).
  m.def("tangents_scale(Tensor t, Tensor first, Tensor(a!) out) -> ()");

  // out = first * r + curve * t, with first and curve (batch, ...); out may be r.
  m.def("tangents_curve(Tensor r, Tensor first, Tensor curve, Tensor t, Tensor(a!) out) -> ()");

  // out = scale * t + slopes * values + shifts, with scale (channels,), slopes and shifts (k, channels) and
  // values (batch, channels, ...), for t (batch, k, channels, ...). slopes and values come together or not at
  // all.
  m.def(
      "tangents_affine(Tensor t, Tensor scale, Tensor? slopes, Tensor? values, Tensor? shifts, Tensor(a!) "
      "out) -> ()");

  // out = weight * (p * t - p <p, t>) for t (batch, k, classes), p (batch, classes) and weights (batch,), one
  // without.
  m.def("tangents_softmax(Tensor t, Tensor p, Tensor? weights, Tensor(a!) out) -> ()");

  // Max-pooling: out[..., i] = t[..., places[..., i]], for t (batch, k, channels, ...) and places (batch,
  // channels,
  // ...), int64, which count in the one or two last dimensions of t; NaN where a place is none.
  m.def("tangents_gather(Tensor t, Tensor places, Tensor(a!) out) -> ()");

  // The transpose: out[..., j] = the sum of r[..., i] over the windows i that cover j and whose place it is,
  // in rising order of i. kernel, stride, padding and dilation have one number for each of the last
  // dimensions.
  m.def(
      "tangents_scatter(Tensor r, Tensor places, int[] kernel, int[] stride, int[] padding, int[] dilation, "
      "Tensor(a!) out) -> ()");

  // out = coefficients @ ends, (k, m), each number summed in float64 and rounded once.
  m.def("blend_points(Tensor coefficients, Tensor ends, Tensor(a!) out) -> ()");

  // Cross-entropy summed over N samples, and the number of correct ones, of k networks that are chains of
  // linear layers with ReLU between them: (k, 2). widths are the outputs of the layers, at most 128. The
  // first layer made first (j, widths[0], N) of the data at each end; ends (j, m) holds weight (out, in) and
  // bias of the others, one after the other. targets are class indices (N,); one that is out of range makes
  // the sum NaN.
  m.def(
      "chain_points(Tensor coefficients, Tensor first, Tensor ends, int[] widths, Tensor targets) -> Tensor");

  // Cross-entropy summed over N samples, and the number of correct ones, of k sets of logits (k, N, c) in any
  // layout: (k, 2). targets as in chain_points.
  m.def("xent_points(Tensor logits, Tensor targets) -> Tensor");
}
