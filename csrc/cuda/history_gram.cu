// history_gram on the GPU: inner products over the free coordinates, of the history and of the reduced
// gradient.
//
// The 2c + 1 rows are taken in groups of kGroup, and a warp multiplies one group with another or with itself:
// its lanes take the free coordinates of a tile, which are listed first, so that bound ones cost nothing.
// Sums are fused multiply-adds: a product of two float32 numbers is exact in float64 in any case.

#include <torch/csrc/stable/library.h>

#include "history.cuh"

namespace lbgap {
namespace {

constexpr int kGroup = 4;
constexpr int kTile = 1024;
constexpr int kMostWarps = 16;
constexpr int64_t kMostChunks = 512;

template <typename T>
struct Reduced {
  Bounds<T> bounds;
  const T* y;
  const T* x;
  const T* g;
  double theta;
  const T* lower;
  const T* upper;
};

// Lists the free coordinates of a tile in rising order, and their h = g + theta (y - x). Returns how many
// there are.
template <typename T>
__device__ int list_free(const Reduced<T>& a, int64_t begin, int64_t end, unsigned short* list, double* h) {
  __shared__ unsigned masks[kTile / kWarp];
  const int lane = threadIdx.x % kWarp;
  for (int part = threadIdx.x / kWarp; part < kTile / kWarp; part += blockDim.x / kWarp) {
    const int64_t i = begin + part * kWarp + lane;
    const bool free = i < end && a.bounds.free(a.y[i], a.lower[i], a.upper[i]);
    const unsigned mask = __ballot_sync(kFull, free);
    if (lane == 0) masks[part] = mask;
  }
  __syncthreads();
  int total = 0;
  for (int part = 0, mine = threadIdx.x / kWarp; part < kTile / kWarp; ++part) {
    const unsigned mask = masks[part];
    if (part == mine) {
      mine += blockDim.x / kWarp;
      if (mask >> lane & 1u) {
        const int at = total + __popc(mask & ((1u << lane) - 1u));
        const int64_t i = begin + part * kWarp + lane;
        list[at] = static_cast<unsigned short>(part * kWarp + lane);
        h[at] = double(a.g[i]) + a.theta * (double(a.y[i]) - double(a.x[i]));
      }
    }
    total += __popc(mask);
  }
  __syncthreads();
  return total;
}

// Row k of W or h at the j-th free coordinate; rows beyond the last stand in for it and are thrown away.
template <typename T>
struct Row {
  const T* data;  // null for h
  const double* h;

  __device__ Row(const History<T>& history, int64_t k, int64_t begin, const double* reduced)
      : data(k < 2 * history.c ? history.row(k) + begin : nullptr), h(reduced) {}
  __device__ double at(int j, int i) const { return data == nullptr ? h[j] : double(data[i]); }
};

template <typename T>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    gram_kernel(Reduced<T> a, History<T> history, int64_t n, int64_t size, int64_t count, int64_t groups,
                int64_t rounds, double* partial) {
  __shared__ unsigned short list[kTile];
  __shared__ double h[kTile];
  const int lane = threadIdx.x % kWarp;
  const int64_t total = 2 * history.c + 1;
  for (int64_t at = blockIdx.x; at < count * rounds; at += gridDim.x) {
    const int64_t chunk = at / rounds;
    // Group ga with gb <= ga, counted row by row: ga (ga + 1) / 2 pairs stand before row ga.
    const int64_t pair = at % rounds * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    int64_t ga = 0;
    while ((ga + 1) * (ga + 2) / 2 <= pair) ++ga;
    const int64_t gb = pair - ga * (ga + 1) / 2;
    double sums[kGroup][kGroup] = {};
    const int64_t end = (chunk + 1) * size < n ? (chunk + 1) * size : n;
    for (int64_t begin = chunk * size; begin < end; begin += kTile) {
      const int free = list_free(a, begin, end, list, h);
      if (ga < groups)
        for (int j = lane; j < free; j += kWarp) {
          const int i = list[j];
          double left[kGroup], right[kGroup];
#pragma unroll
          for (int r = 0; r < kGroup; ++r) {
            left[r] = Row<T>(history, ga * kGroup + r, begin, h).at(j, i);
            right[r] = Row<T>(history, gb * kGroup + r, begin, h).at(j, i);
          }
#pragma unroll
          for (int r = 0; r < kGroup; ++r)
#pragma unroll
            for (int s = 0; s < kGroup; ++s) sums[r][s] = fma(left[r], right[s], sums[r][s]);
        }
      __syncthreads();  // the list is made anew
    }
#pragma unroll
    for (int r = 0; r < kGroup; ++r)
#pragma unroll
      for (int s = 0; s < kGroup; ++s) {
        const double sum = warp_sum<Plain>(0, sums[r][s]);
        const int64_t row = ga * kGroup + r;
        const int64_t column = gb * kGroup + s;
        if (lane == 0 && ga < groups && row < total && column < total) {
          partial[(chunk * total + row) * total + column] = sum;
          partial[(chunk * total + column) * total + row] = sum;
        }
      }
  }
}

Tensor history_gram(const Tensor& y, const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y,
                    double theta, const Tensor& lower, const Tensor& upper, double absolute,
                    double relative) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(y, x, "y");
  check_vector(g, x, "g");
  check_history(S, Y, x);
  const Device device(x);
  const int64_t n = x.size(0);
  const int64_t total = 2 * S.size(0) + 1;
  const int64_t groups = (total + kGroup - 1) / kGroup;
  const int64_t pairs = groups * (groups + 1) / 2;
  const int64_t warps = std::min<int64_t>(pairs, kMostWarps);
  const int64_t rounds = (pairs + warps - 1) / warps;
  const Chunks chunks(n, kTile, kMostChunks);
  const Tensor partial = scratch(x, {chunks.count, total, total});
  const Tensor gram = scratch(x, {total, total});
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Reduced<T> a{bounds_of<T>(absolute, relative),
                       y.const_data_ptr<T>(),
                       x.const_data_ptr<T>(),
                       g.const_data_ptr<T>(),
                       theta,
                       lower.const_data_ptr<T>(),
                       upper.const_data_ptr<T>()};
    device.run(gram_kernel<T>, chunks.count * rounds, static_cast<int>(warps) * kWarp, a, history_of<T>(S, Y),
               n, chunks.size, chunks.count, groups, rounds, data_of(partial));
  });
  fold<Plain>(device, partial, 1, chunks.count, total * total, gram);
  return gram;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("history_gram", TORCH_BOX(&lbgap::history_gram)); }
