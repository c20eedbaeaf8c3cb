// chain_points on the CPU: many points of a chain of narrow layers, a tile of samples in cache from the first
// layer's products to the loss.
//
// A tile is stored feature by feature, its samples along the lanes. Weights are packed in panels of kOutputs
// outputs, input by input, so that the products of a panel read one weight after the other. Products are
// fused with their additions where the processor has that, so that they have not the same bits on every
// machine, as those of a matrix product have not; they do not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include "points.h"

#if defined(__clang__)
#define LBGAP_FUSED
#define LBGAP_FUSE _Pragma("clang fp contract(fast)")
#else
#define LBGAP_FUSED __attribute__((optimize("fp-contract=fast")))
#define LBGAP_FUSE
#endif

namespace lbgap {
namespace {

constexpr int64_t kOutputs = 6;

// A register of kBytes.
template <int kBytes, typename T>
struct Lanes {
  static constexpr int64_t kCount = kBytes / sizeof(T);
  using Type __attribute__((vector_size(kBytes), aligned(kBytes), may_alias)) = T;
};

// What all tasks share. `ends` are packed, `packed` numbers each.
template <typename T>
struct Chain {
  const double* coefficients;
  int64_t coefficient_stride;
  int64_t j;
  const T* first;
  int64_t first_end;  // strides of `first`
  int64_t first_feature;
  const T* ends;
  int64_t packed;
  const std::vector<int64_t>* widths;
  const int64_t* targets;
};

// Memory of one thread.
template <typename T>
struct Scratch {
  T* weights;  // of one point, packed
  T* tiles[2];
};

// R outputs of a layer for C registers of samples: out[r] = bias[r] + sum over i of weight[i][r] in[i].
template <int R, int C, int kBytes, typename T>
LBGAP_INLINE void panel(const T* in, const T* weights, int64_t inputs, bool relu, T* out) {
  LBGAP_FUSE
  using V = typename Lanes<kBytes, T>::Type;
  V sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = V{} + weights[inputs * R + r];
  for (int64_t i = 0; i < inputs; ++i) {
    V x[C];
    for (int c = 0; c < C; ++c)
      x[c] = *reinterpret_cast<const V*>(in + i * kSamples + c * Lanes<kBytes, T>::kCount);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c] += x[c] * weights[i * R + r];
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      const V value = sums[r][c];
      *reinterpret_cast<V*>(out + r * kSamples + c * Lanes<kBytes, T>::kCount) =
          relu ? (value < T(0) ? V{} : value) : value;
    }
}

template <int R, int C, int kBytes, typename T>
LBGAP_INLINE void panels(const T* in, const T* weights, int64_t inputs, bool relu, T* out) {
  for (int64_t at = 0; at < kSamples; at += C * Lanes<kBytes, T>::kCount)
    panel<R, C, kBytes>(in + at, weights, inputs, relu, out + at);
}

// One layer on a tile; returns where the next one's weights are.
template <int C, int kBytes, typename T>
LBGAP_INLINE const T* layer(const T* in, const T* weights, int64_t inputs, int64_t outputs, bool relu,
                            T* out) {
  int64_t o = 0;
  for (; o + kOutputs <= outputs; o += kOutputs, weights += kOutputs * (inputs + 1))
    panels<kOutputs, C, kBytes>(in, weights, inputs, relu, out + o * kSamples);
  T* rest = out + o * kSamples;
  switch (outputs - o) {
    case 1:
      panels<1, C, kBytes>(in, weights, inputs, relu, rest);
      break;
    case 2:
      panels<2, C, kBytes>(in, weights, inputs, relu, rest);
      break;
    case 3:
      panels<3, C, kBytes>(in, weights, inputs, relu, rest);
      break;
    case 4:
      panels<4, C, kBytes>(in, weights, inputs, relu, rest);
      break;
    case 5:
      panels<5, C, kBytes>(in, weights, inputs, relu, rest);
      break;
  }
  return weights + (outputs - o) * (inputs + 1);
}

// The first layer's outputs of a point, for `count` samples from `at` on; zeros beyond them.
template <typename T>
LBGAP_INLINE void blend_first(const Chain<T>& chain, const double* coefficients, int64_t at, int64_t count,
                              bool relu, T* out) {
  const int64_t width = (*chain.widths)[0];
  std::fill_n(out, width * kSamples, T(0));
  bool begun = false;
  for (int64_t e = 0; e < chain.j; ++e) {
    const auto c = static_cast<T>(coefficients[e]);
    if (c == T(0)) continue;
    for (int64_t f = 0; f < width; ++f) {
      const T* from = chain.first + e * chain.first_end + f * chain.first_feature + at;
      T* to = out + f * kSamples;
      // Two loops: adding to zero would turn a negative zero into a positive one.
      if (begun)
        for (int64_t l = 0; l < count; ++l) to[l] += c * from[l];
      else
        for (int64_t l = 0; l < count; ++l) to[l] = c * from[l];
    }
    begun = true;
  }
  if (relu)
    for (int64_t i = 0; i < width * kSamples; ++i) out[i] = out[i] < T(0) ? T(0) : out[i];
}

// The weights of a point, each summed in float64 and rounded once.
template <typename T>
LBGAP_INLINE void blend_weights(const Chain<T>& chain, const double* coefficients, T* out) {
  constexpr int64_t kTile = 64;
  for (int64_t at = 0; at < chain.packed; at += kTile) {
    const int64_t n = std::min(kTile, chain.packed - at);
    double sum[kTile] = {};
    bool begun = false;
    for (int64_t e = 0; e < chain.j; ++e) {
      const double c = coefficients[e];
      if (c == 0.0) continue;
      const T* end = chain.ends + e * chain.packed + at;
      if (begun)
        for (int64_t i = 0; i < n; ++i) sum[i] += c * double(end[i]);
      else
        for (int64_t i = 0; i < n; ++i) sum[i] = c * double(end[i]);
      begun = true;
    }
    for (int64_t i = 0; i < n; ++i) out[at + i] = static_cast<T>(sum[i]);
  }
}

// One chunk of samples of one point, C registers of samples at a time.
template <int C, int kBytes, typename T>
LBGAP_INLINE void chunk(const Chain<T>& chain, int64_t point, int64_t begin, int64_t end,
                        const Scratch<T>& scratch, double* lanes) {
  const double* coefficients = chain.coefficients + point * chain.coefficient_stride;
  const auto& widths = *chain.widths;
  const auto layers = static_cast<int64_t>(widths.size());
  blend_weights(chain, coefficients, scratch.weights);
  for (int64_t at = begin; at < end; at += kSamples) {
    const int64_t count = std::min(kSamples, end - at);
    blend_first(chain, coefficients, at, count, layers > 1, scratch.tiles[0]);
    const T* weights = scratch.weights;
    for (int64_t l = 1; l < layers; ++l)
      weights = layer<C, kBytes>(scratch.tiles[(l - 1) % 2], weights, widths[l - 1], widths[l],
                                 l + 1 < layers, scratch.tiles[l % 2]);
    TileLoss<T> loss;
    loss.start();
    loss.add(scratch.tiles[(layers - 1) % 2], kSamples, 0, widths.back(), chain.targets + at, count);
    loss.finish(chain.targets + at, count, lanes);
  }
}

template <typename T>
using Run = void (*)(const Chain<T>&, int64_t, int64_t, int64_t, const Scratch<T>&, double*);

// The sums of a panel, and what is multiplied, fill the registers: 32 of 64 bytes, or 16 narrower ones.
template <typename T>
LBGAP_FUSED void run_plain(const Chain<T>& chain, int64_t point, int64_t begin, int64_t end,
                           const Scratch<T>& scratch, double* lanes) {
  chunk<2, 16>(chain, point, begin, end, scratch, lanes);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <typename T>
LBGAP_FUSED
    __attribute__((target("avx2,fma"))) void run_avx2(const Chain<T>& chain, int64_t point, int64_t begin,
                                                      int64_t end, const Scratch<T>& scratch, double* lanes) {
  chunk<2, 32>(chain, point, begin, end, scratch, lanes);
}

template <typename T>
LBGAP_FUSED __attribute__((target("avx512f"))) void run_avx512(const Chain<T>& chain, int64_t point,
                                                               int64_t begin, int64_t end,
                                                               const Scratch<T>& scratch, double* lanes) {
  chunk<4, 64>(chain, point, begin, end, scratch, lanes);
}
#endif

template <typename T>
Run<T> choose() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return run_avx512<T>;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return run_avx2<T>;
#endif
  return run_plain<T>;
}

// The weights of one end in panels: for each kOutputs outputs all weights input by input, then the biases.
template <typename T>
void pack(const T* from, const std::vector<int64_t>& widths, T* to) {
  for (size_t l = 1; l < widths.size(); ++l) {
    const int64_t inputs = widths[l - 1];
    const T* bias = from + widths[l] * inputs;
    for (int64_t o = 0; o < widths[l]; o += kOutputs) {
      const int64_t outputs = std::min(kOutputs, widths[l] - o);
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t r = 0; r < outputs; ++r) *to++ = from[(o + r) * inputs + i];
      to = std::copy_n(bias + o, outputs, to);
    }
    from = bias + widths[l];
  }
}

Tensor chain_points(const Tensor& coefficients, const Tensor& first, const Tensor& ends,
                    std::vector<int64_t> widths, const Tensor& targets) {
  check_chain(coefficients, first, ends, widths, targets, kWidest, kMostLayers);
  const Rows c = rows_of(coefficients, "coefficients");
  const Rows e = rows_of(ends, "ends");
  Tensor sums = first;
  by_dtype(first, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> packed(static_cast<size_t>(e.k * e.n));
    for (int64_t i = 0; i < e.k; ++i)
      pack(ends.const_data_ptr<T>() + i * e.stride, widths, packed.data() + i * e.n);
    const Chain<T> chain{coefficients.const_data_ptr<double>(),
                         c.stride,
                         c.n,
                         first.const_data_ptr<T>(),
                         first.stride(0),
                         first.stride(1),
                         packed.data(),
                         e.n,
                         &widths,
                         targets.const_data_ptr<int64_t>()};
    const Run<T> chosen = choose<T>();
    sums = sum_points(first, c.k, first.size(2), [&] {
      constexpr int64_t kTile = kWidest * kSamples;
      std::vector<T> memory(static_cast<size_t>(2 * kTile + chain.packed + 64 / sizeof(T)));
      T* at = memory.data();
      while (reinterpret_cast<uintptr_t>(at) % 64 != 0) ++at;
      return [&chain, chosen, memory = std::move(memory),
              scratch = Scratch<T>{at + 2 * kTile, {at, at + kTile}}](int64_t point, int64_t begin,
                                                                      int64_t end, double* lanes) {
        chosen(chain, point, begin, end, scratch, lanes);
      };
    });
  });
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("chain_points", TORCH_BOX(&lbgap::chain_points)); }
