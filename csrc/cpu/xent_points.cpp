// xent_points on the CPU: summed cross-entropy and number of correct samples of k sets of logits.

#include <torch/csrc/stable/library.h>

#include "points.h"

namespace lbgap {
namespace {

// One set of logits; strides in elements.
template <typename T>
struct Logits {
  const T* data;
  int64_t sample;
  int64_t label;
  int64_t classes;
};

template <typename T>
LBGAP_INLINE void chunk(const Logits<T>& logits, const int64_t* targets, int64_t begin, int64_t end,
                        double* lanes) {
  alignas(64) T copy[kGroup * kSamples];
  TileLoss<T> tile;
  for (int64_t at = begin; at < end; at += kSamples) {
    const int64_t count = std::min(kSamples, end - at);
    tile.start();
    for (int64_t first = 0; first < logits.classes; first += kGroup) {
      const int64_t classes = std::min(kGroup, logits.classes - first);
      const T* from = logits.data + at * logits.sample + first * logits.label;
      if (logits.sample == 1 && count == kSamples) {
        tile.add(from, logits.label, first, classes, targets + at, count);
        continue;
      }
      // Lanes beyond the last sample hold what was there before, and are left out in the end.
      if (count < kSamples) std::fill_n(copy, classes * kSamples, T(0));
      for (int64_t l = 0; l < count; ++l)
        for (int64_t c = 0; c < classes; ++c)
          copy[c * kSamples + l] = from[l * logits.sample + c * logits.label];
      tile.add(copy, kSamples, first, classes, targets + at, count);
    }
    tile.finish(targets + at, count, lanes);
  }
}

LBGAP_CLONES void run(const Logits<float>& logits, const int64_t* targets, int64_t begin, int64_t end,
                      double* lanes) {
  chunk(logits, targets, begin, end, lanes);
}

LBGAP_CLONES void run(const Logits<double>& logits, const int64_t* targets, int64_t begin, int64_t end,
                      double* lanes) {
  chunk(logits, targets, begin, end, lanes);
}

Tensor xent_points(const Tensor& logits, const Tensor& targets) {
  check_xent(logits, targets);
  Tensor sums = logits;
  by_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    const T* data = logits.const_data_ptr<T>();
    const int64_t* labels = targets.const_data_ptr<int64_t>();
    sums = sum_points(logits, logits.size(0), logits.size(1), [&] {
      return [&](int64_t point, int64_t begin, int64_t end, double* lanes) {
        run(Logits<T>{data + point * logits.stride(0), logits.stride(1), logits.stride(2), logits.size(2)},
            labels, begin, end, lanes);
      };
    });
  });
  return sums;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("xent_points", TORCH_BOX(&lbgap::xent_points)); }
