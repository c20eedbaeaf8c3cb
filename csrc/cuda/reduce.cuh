// Sums over a fixed tree: lanes of a warp, warps of a block, blocks of a row. No atomics, and nothing depends
// on the size of the grid: the same bits on every run.

#pragma once

#include "launch.cuh"

namespace lbgap {

// How sum s of a functor F begins and is put together; a plain sum unless F says otherwise.
template <typename F>
__device__ inline double start(int s) {
  if constexpr (requires { F::start(s); })
    return F::start(s);
  else
    return 0.0;
}

template <typename F>
__device__ inline double join(int s, double a, double b) {
  if constexpr (requires { F::join(s, a, b); })
    return F::join(s, a, b);
  else
    return a + b;
}

struct Plain {};

// Sum s of all threads of a warp, in its lane 0.
template <typename F>
__device__ inline double warp_sum(int s, double value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = join<F>(s, value, __shfl_down_sync(kFull, value, offset));
  return value;
}

// Sum s of all threads of a block of kThreads, in its thread 0. All threads must call it.
template <typename F>
__device__ inline double block_sum(int s, double value) {
  __shared__ double warps[kThreads / kWarp];
  value = warp_sum<F>(s, value);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kThreads / kWarp; ++w) value = join<F>(s, value, warps[w]);
  __syncthreads();  // `warps` is used again
  return value;
}

// out[row, s] = what the blocks of a row found, for s below `columns`: one block of threads each.
template <typename F>
__global__ void fold_kernel(const double* partial, int64_t rows, int64_t blocks, int64_t columns,
                            double* out) {
  for (int64_t at = blockIdx.x; at < rows * columns; at += gridDim.x) {
    const int64_t row = at / columns;
    const int s = static_cast<int>(at % columns);
    double value = start<F>(s);
    for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x)
      value = join<F>(s, value, partial[(row * blocks + b) * columns + s]);
    value = block_sum<F>(s, value);
    if (threadIdx.x == 0) out[at] = value;
  }
}

// Puts the (rows, blocks, columns) sums of blocks together into `out`, (rows, columns).
template <typename F>
void fold(const Device& device, const Tensor& partial, int64_t rows, int64_t blocks, int64_t columns,
          const Tensor& out) {
  device.run(fold_kernel<F>, rows * columns, kThreads, data_of(partial), rows, blocks, columns, data_of(out));
}

// n coordinates in at most `most` chunks of equal size, a multiple of `unit`: their number depends on n
// alone.
struct Chunks {
  int64_t count;
  int64_t size;
  Chunks(int64_t n, int64_t unit, int64_t most) {
    const int64_t units = (n + unit - 1) / unit;
    size = std::max<int64_t>((units + most - 1) / most, 1) * unit;
    count = (n + size - 1) / size;
  }
};

}  // namespace lbgap
