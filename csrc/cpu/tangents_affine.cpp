// tangents_affine on the CPU: scale * t + slopes * values + shifts, channel by channel, goes to out.

#include <torch/csrc/stable/library.h>

#include "tangents.h"

namespace lbgap {
namespace {

template <typename T>
LBGAP_INLINE void rows(const Affine<T>& f, int64_t begin, int64_t end, int64_t k, int64_t channels,
                       int64_t inner) {
  const int64_t size = channels * inner;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * size;
    const int64_t own = row % k * channels;
    const int64_t shared = row / k * size;
    if (inner == 1) {
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) f(at + c, c, own + c, shared + c);
    } else {
      for (int64_t c = 0; c < channels; ++c)
#pragma GCC ivdep
        for (int64_t i = c * inner; i < (c + 1) * inner; ++i) f(at + i, c, own + c, shared + i);
    }
  }
}

LBGAP_CLONES void some_rows(Affine<float> f, int64_t begin, int64_t end, int64_t k, int64_t channels,
                            int64_t inner) {
  rows(f, begin, end, k, channels, inner);
}

LBGAP_CLONES void some_rows(Affine<double> f, int64_t begin, int64_t end, int64_t k, int64_t channels,
                            int64_t inner) {
  rows(f, begin, end, k, channels, inner);
}

LBGAP_CLONES void some_rows(Affine<Bfloat16> f, int64_t begin, int64_t end, int64_t k, int64_t channels,
                            int64_t inner) {
  rows(f, begin, end, k, channels, inner);
}

void tangents_affine(const Tensor& t, const Tensor& scale, std::optional<Tensor> slopes,
                     std::optional<Tensor> values, std::optional<Tensor> shifts, Tensor out) {
  const Tangents n = check_affine(t, scale, slopes, values, shifts, out);
  const int64_t channels = t.size(2);
  by_tangent(t, [&](auto zero) {
    using T = decltype(zero);
    using M = Math<T>;
    const Affine<T> f{data<T>(t),      data<M>(scale),  data<M>(slopes),
                      data<M>(values), data<M>(shifts), written<T>(out)};
    for_rows(n.batch * n.k, n.size,
             [&](int64_t begin, int64_t end) { some_rows(f, begin, end, n.k, channels, n.size / channels); });
  });
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("tangents_affine", TORCH_BOX(&lbgap::tangents_affine)); }
