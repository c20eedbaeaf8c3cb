// tangents_curve on the GPU: first * r + curve * t goes to out.

#include <torch/csrc/stable/library.h>

#include "tangents.cuh"

namespace lbgap {
namespace {

template <typename T>
struct Curve {
  const T* r;
  const Math<T>* first;
  const Math<T>* curve;
  const T* t;
  T* out;

  template <int V>
  __device__ void run(int64_t i, int64_t shared) const {
    const auto a = load<V>(r + i);
    const auto b = load<V>(first + shared);
    const auto c = load<V>(curve + shared);
    const auto d = load<V>(t + i);
    Neighbours<T, V> result;
#pragma unroll
    for (int e = 0; e < V; ++e)
      result.value[e] = narrow<T>(curved(widen(a.value[e]), b.value[e], c.value[e], widen(d.value[e])));
    *reinterpret_cast<Neighbours<T, V>*>(out + i) = result;
  }
};

void tangents_curve(const Tensor& r, const Tensor& first, const Tensor& curve, const Tensor& t, Tensor out) {
  const Tangents n = check_curve(r, first, curve, t, out);
  const Device device(r);
  by_tangent(r, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWide = 16 / sizeof(Math<T>);
    const Curve<T> f{data<T>(r), data<Math<T>>(first), data<Math<T>>(curve), data<T>(t), written<T>(out)};
    if (n.size % kWide == 0 && is_aligned({&r, &first, &curve, &t, &out}))
      for_each<kWide>(device, f, n);
    else
      for_each<1>(device, f, n);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("tangents_curve", TORCH_BOX(&lbgap::tangents_curve)); }
