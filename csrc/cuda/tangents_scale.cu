// tangents_scale on the GPU: first * t goes to out.

#include <torch/csrc/stable/library.h>

#include "tangents.cuh"

namespace lbgap {
namespace {

template <typename T>
struct Scale {
  const T* t;
  const Math<T>* first;
  T* out;

  template <int V>
  __device__ void run(int64_t i, int64_t shared) const {
    const auto a = load<V>(t + i);
    const auto b = load<V>(first + shared);
    Neighbours<T, V> result;
#pragma unroll
    for (int e = 0; e < V; ++e) result.value[e] = narrow<T>(scaled(widen(a.value[e]), b.value[e]));
    *reinterpret_cast<Neighbours<T, V>*>(out + i) = result;
  }
};

void tangents_scale(const Tensor& t, const Tensor& first, Tensor out) {
  const Tangents n = check_tangents(t, out);
  check_shared(first, t, out, n.batch * n.size, "first");
  const Device device(t);
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWide = 16 / sizeof(Math<T>);
    const Scale<T> f{data<T>(t), data<Math<T>>(first), written<T>(out)};
    if (n.size % kWide == 0 && is_aligned({&t, &first, &out}))
      for_each<kWide>(device, f, n);
    else
      for_each<1>(device, f, n);
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("tangents_scale", TORCH_BOX(&lbgap::tangents_scale)); }
