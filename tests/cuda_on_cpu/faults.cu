// Kernels with one mistake each, to see that the emulator reports it, and sound ones that it must let pass.
// Each runs on two blocks of 64 threads and a tensor of 128 float32 numbers.

#include <torch/csrc/stable/library.h>

#include <map>
#include <string>

#include "cuda/launch.cuh"

namespace lbgap {
namespace {

constexpr int kCount = 64;

__device__ inline int global_index() {
  return static_cast<int>(blockIdx.x) * kCount + static_cast<int>(threadIdx.x);
}

// Sound: each block turns its part around.
__global__ void reverse_kernel(float* data) {
  __shared__ float tile[kCount];
  tile[threadIdx.x] = data[global_index()];
  __syncthreads();
  data[global_index()] = tile[kCount - 1 - threadIdx.x];
}

// Sound: prefix sums of each warp, by way of shared memory.
__global__ void scan_kernel(float* data) {
  __shared__ float tile[kCount];
  const unsigned lane = threadIdx.x % kWarp;
  tile[threadIdx.x] = data[global_index()];
  for (unsigned offset = 1; offset < kWarp; offset *= 2) {
    __syncwarp();
    const float before = lane >= offset ? tile[threadIdx.x - offset] : 0.0f;
    __syncwarp();
    tile[threadIdx.x] += before;
  }
  data[global_index()] = tile[threadIdx.x];
}

__global__ void read_beyond_kernel(float* data) {
  const float value = data[global_index() + 1];
  if (value < 0) data[global_index()] = value;
}

__global__ void write_beyond_kernel(float* data) {
  if (global_index() == 2 * kCount - 1) data[global_index() + 1] = 1.0f;
}

__global__ void write_before_kernel(float* data) {
  if (global_index() == 0) data[-1] = 1.0f;
}

__global__ void shared_beyond_kernel(float* data) {
  __shared__ float tile[kCount];
  tile[threadIdx.x + 1] = data[global_index()];
  __syncthreads();
  data[global_index()] = tile[threadIdx.x];
}

__global__ void shared_far_beyond_kernel(float* data) {
  __shared__ float tile[kCount];
  float* place = tile + threadIdx.x;
  if (threadIdx.x == kCount - 1) place += 1;
  *place = data[global_index()];
  __syncthreads();
  data[global_index()] = tile[0];
}

__global__ void local_beyond_kernel(float* data, int count) {
  float values[4] = {};
  for (int i = 0; i < count; ++i) values[i] = data[i];
  if (threadIdx.x == 0) data[global_index()] = values[data[0] > 0 ? 1 : 0];
}

__global__ void misaligned_kernel(float* data) {
  struct alignas(16) Pack {
    float value[4];
  };
  const Pack pack = *reinterpret_cast<const Pack*>(data + 1);
  if (threadIdx.x == 0) data[global_index()] = pack.value[0];
}

// No barrier between the write and the read.
__global__ void missing_barrier_kernel(float* data) {
  __shared__ float tile[kCount];
  tile[threadIdx.x] = data[global_index()];
  data[global_index()] = tile[kCount - 1 - threadIdx.x];
}

// No barrier before the tile is written again.
__global__ void missing_second_barrier_kernel(float* data) {
  __shared__ float tile[kCount];
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = data[global_index()];
    __syncthreads();
    data[global_index()] = tile[kCount - 1 - threadIdx.x];
  }
}

__global__ void missing_syncwarp_kernel(float* data) {
  __shared__ float tile[kCount];
  tile[threadIdx.x] = data[global_index()];
  __shfl_sync(kFull, 0, 0);  // orders nothing
  data[global_index()] = tile[threadIdx.x ^ 1u];
}

// Each lane adds to what its neighbour added to before.
__global__ void missing_syncwarp_of_sums_kernel(float* data) {
  float* own = data + blockIdx.x * kCount + threadIdx.x / kWarp * kWarp;
  for (unsigned round = 0; round < 4; ++round) {
    const float value = __shfl_sync(kFull, 1.0f, 0);
    if (threadIdx.x % kWarp == round) own[0] += value;
  }
}

__global__ void same_word_kernel(float* data) { data[threadIdx.x] = 1.0f; }

__global__ void other_block_kernel(float* data) {
  const float value = data[kCount * (1 - blockIdx.x) + threadIdx.x];
  data[global_index()] = value;
}

// Global memory needs barriers too.
__global__ void global_race_kernel(float* data) {
  data[global_index()] = 1.0f;
  if (threadIdx.x == 0) data[global_index()] = data[global_index() + 40];
}

__global__ void garbage_kernel(float* data) {
  __shared__ float tile[kCount];
  if (threadIdx.x < 5) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  data[global_index()] = tile[threadIdx.x];
}

__global__ void divergent_barrier_kernel(float* data) {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncthreads();
  data[global_index()] = 0.0f;
}

__global__ void early_end_kernel(float* data) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  data[global_index()] = 0.0f;
}

__global__ void lane_outside_mask_kernel(float* data) {
  data[global_index()] = __shfl_down_sync(0xffffu, data[global_index()], 1);
}

__global__ void lane_missing_kernel(float* data) {
  if (threadIdx.x % kWarp < 16) data[global_index()] = __shfl_down_sync(kFull, data[global_index()], 1);
}

__global__ void source_outside_mask_kernel(float* data) {
  if (threadIdx.x % kWarp < 16) data[global_index()] = __shfl_down_sync(0xffffu, data[global_index()], 1);
}

__global__ void overflow_kernel(float* data, int large) {
  const int index = large * static_cast<int>(threadIdx.x);
  if (index < 0) data[0] = 1.0f;
}

__global__ void host_stack_kernel(float* data, const float* host) {
  if (threadIdx.x == 0) data[global_index()] = *host;
}

#define FAULT(name) {#name, name##_kernel}
const std::map<std::string, void (*)(float*)> kFaults = {
    FAULT(reverse),
    FAULT(scan),
    FAULT(read_beyond),
    FAULT(write_beyond),
    FAULT(write_before),
    FAULT(shared_beyond),
    FAULT(shared_far_beyond),
    FAULT(misaligned),
    FAULT(missing_barrier),
    FAULT(missing_second_barrier),
    FAULT(missing_syncwarp),
    FAULT(missing_syncwarp_of_sums),
    FAULT(same_word),
    FAULT(other_block),
    FAULT(global_race),
    FAULT(garbage),
    FAULT(divergent_barrier),
    FAULT(early_end),
    FAULT(lane_outside_mask),
    FAULT(lane_missing),
    FAULT(source_outside_mask),
};

void fault(Tensor t, std::string name) {
  const Device device(t);
  auto* data = t.mutable_data_ptr<float>();
  const float on_stack = 1.0f;
  if (name == "local_beyond")
    device.run(local_beyond_kernel, 2, kCount, data, 5);
  else if (name == "overflow")
    device.run(overflow_kernel, 2, kCount, data, 1 << 30);
  else if (name == "host_stack")
    device.run(host_stack_kernel, 2, kCount, data, &on_stack);
  else if (name == "too_many_threads")
    device.run(reverse_kernel, 2, 2048, data);
  else
    device.run(kFaults.at(name), 2, kCount, data);
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY(faults, m) { m.def("fault(Tensor(a!) t, str name) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(faults, CUDA, m) { m.impl("fault", TORCH_BOX(&lbgap::fault)); }
