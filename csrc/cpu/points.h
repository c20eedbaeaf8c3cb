// What the ops on many points share on the CPU: samples along the lanes, and their losses over a fixed tree.
//
// A chunk is kChunk samples of one point. Inside it sample i adds to lane i % kSamples, then the lanes are
// folded neighbour by neighbour, then the chunks of a point in the same way.

#pragma once

#include "../points.h"
#include "../points_checks.h"
#include "loops.h"

namespace lbgap {

constexpr int64_t kSamples = 64;          // of a tile
constexpr int64_t kChunk = 8 * kSamples;  // samples
constexpr int64_t kGroup = 128;           // classes that are looked at before their exponentials are summed

// The cross-entropies of a tile of samples, from groups of at most kGroup classes in rising order.
template <typename T>
struct TileLoss {
  alignas(64) T largest[kSamples];
  alignas(64) T sum[kSamples];
  alignas(64) T right[kSamples];
  alignas(64) int32_t best[kSamples];

  LBGAP_INLINE void start() {
    for (int64_t l = 0; l < kSamples; ++l) {
      const auto e = CrossEntropy<T>::start();
      largest[l] = e.largest;
      sum[l] = e.sum;
      best[l] = e.best;
      right[l] = static_cast<T>(__builtin_nan(""));  // stays where a target is out of range
    }
  }

  // Classes first .. first + classes - 1; class c of sample l is logits[c * stride + l], targets are those of
  // `count` samples.
  LBGAP_INLINE void add(const T* logits, int64_t stride, int64_t first, int64_t classes,
                        const int64_t* targets, int64_t count) {
    alignas(64) T before[kSamples];
    for (int64_t l = 0; l < kSamples; ++l) before[l] = largest[l];
    for (int64_t c = 0; c < classes; ++c) {
      const T* row = logits + c * stride;
      const auto label = static_cast<int32_t>(first + c);
#pragma GCC ivdep
      for (int64_t l = 0; l < kSamples; ++l) {
        CrossEntropy<T> e{largest[l], sum[l], best[l]};
        e.top(row[l], label);
        largest[l] = e.largest;
        best[l] = e.best;
      }
    }
    if (first > 0)
#pragma GCC ivdep
      for (int64_t l = 0; l < kSamples; ++l) {
        CrossEntropy<T> e{largest[l], sum[l], best[l]};
        e.rescale(before[l]);
        sum[l] = e.sum;
      }
    for (int64_t c = 0; c < classes; ++c) {
      const T* row = logits + c * stride;
#pragma GCC ivdep
      for (int64_t l = 0; l < kSamples; ++l) {
        CrossEntropy<T> e{largest[l], sum[l], best[l]};
        e.add(row[l]);
        sum[l] = e.sum;
      }
    }
    for (int64_t l = 0; l < count; ++l)
      if (targets[l] >= first && targets[l] < first + classes)
        right[l] = logits[(targets[l] - first) * stride + l];
  }

  // Adds the losses to lanes[0 .. kSamples) and the correct samples to lanes[kSamples .. 2 kSamples).
  LBGAP_INLINE void finish(const int64_t* targets, int64_t count, double* lanes) const {
    alignas(64) double loss[kSamples];
#pragma GCC ivdep
    for (int64_t l = 0; l < kSamples; ++l)
      loss[l] = CrossEntropy<T>{largest[l], sum[l], best[l]}.loss(right[l]);
    for (int64_t l = 0; l < count; ++l) {
      lanes[l] += loss[l];
      lanes[kSamples + l] += best[l] == targets[l] ? 1.0 : 0.0;
    }
  }
};

// run(point, begin, end, lanes) adds the samples [begin, end) of one point, at most kChunk, to 2 kSamples
// lanes. Returns the (k, 2) sums. Neighbouring tasks are points on the same samples.
template <typename Run>
Tensor sum_points(const Tensor& like, int64_t k, int64_t samples, const Run& run) {
  const int64_t chunks = (samples + kChunk - 1) / kChunk;
  std::vector<double> partial(static_cast<size_t>(std::max<int64_t>(k * chunks * 2, 1)));
  torch::stable::parallel_for(0, k * chunks, 1, [&](int64_t begin, int64_t end) {
    auto work = run();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / k;
      const int64_t point = task % k;
      double lanes[2 * kSamples] = {};
      work(point, chunk * kChunk, std::min((chunk + 1) * kChunk, samples), lanes);
      for (int s = 0; s < 2; ++s) {
        fold(lanes + s * kSamples, kSamples, 1);
        partial[static_cast<size_t>((point * chunks + chunk) * 2 + s)] = lanes[s * kSamples];
      }
    }
  });
  const int64_t shape[2] = {k, 2};
  Tensor result = torch::stable::new_empty(like, {shape, 2}, std::make_optional(ScalarType::Double));
  double* sums = result.mutable_data_ptr<double>();
  for (int64_t i = 0; i < 2 * k; ++i) {
    double* first = partial.data() + i / 2 * chunks * 2 + i % 2;
    if (chunks > 0) fold(first, chunks, 2);
    sums[i] = chunks > 0 ? *first : 0.0;
  }
  return result;
}

}  // namespace lbgap
