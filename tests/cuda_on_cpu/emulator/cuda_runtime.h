// Stands in for CUDA's header of this name where kernels are compiled for the CPU: as much of the language
// and of the runtime as the kernels of this package use. `__shared__` is not here: library.py rewrites it.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

using dim3 = emulator::Dim3;

// Barriers. Default arguments say where the call stands.

#define EMULATOR_UNWATCHED __attribute__((no_sanitize("thread", "undefined")))
#define EMULATOR_HERE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

EMULATOR_UNWATCHED inline void __syncthreads(EMULATOR_HERE) {
  emulator::block_barrier({file, line}, "__syncthreads", true);
}
EMULATOR_UNWATCHED inline int __syncthreads_count(int predicate, EMULATOR_HERE) {
  return static_cast<int>(emulator::block_barrier({file, line}, "__syncthreads_count", predicate != 0));
}
EMULATOR_UNWATCHED inline int __syncthreads_or(int predicate, EMULATOR_HERE) {
  return emulator::block_barrier({file, line}, "__syncthreads_or", predicate != 0) > 0;
}
EMULATOR_UNWATCHED inline int __syncthreads_and(int predicate, EMULATOR_HERE) {
  return emulator::block_barrier({file, line}, "__syncthreads_and", predicate == 0) == 0;
}

// Warps.

namespace emulator {

EMULATOR_UNWATCHED inline unsigned lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarp;
}

template <typename T>
EMULATOR_UNWATCHED T shuffle(Site site, const char* name, unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "no shuffle of this type in CUDA");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(site, name, mask, bits, source, false).value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

EMULATOR_UNWATCHED inline unsigned ballot(Site site, const char* name, unsigned mask, bool predicate) {
  return warp_exchange(site, name, mask, predicate, lane(), false).nonzero;
}

}  // namespace emulator

template <typename T>
EMULATOR_UNWATCHED T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_HERE) {
  const unsigned w = static_cast<unsigned>(width);
  const unsigned from = emulator::lane() / w * w + (static_cast<unsigned>(source) & (w - 1));
  return emulator::shuffle({file, line}, "__shfl_sync", mask, value, from);
}

template <typename T>
EMULATOR_UNWATCHED T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
  const unsigned lane = emulator::lane();
  const bool inside = lane % static_cast<unsigned>(width) >= delta;
  return emulator::shuffle({file, line}, "__shfl_up_sync", mask, value, inside ? lane - delta : lane);
}

template <typename T>
EMULATOR_UNWATCHED T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
  const unsigned lane = emulator::lane();
  const unsigned w = static_cast<unsigned>(width);
  const bool inside = lane % w + delta < w;
  return emulator::shuffle({file, line}, "__shfl_down_sync", mask, value, inside ? lane + delta : lane);
}

template <typename T>
EMULATOR_UNWATCHED T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_HERE) {
  const unsigned lane = emulator::lane();
  const unsigned w = static_cast<unsigned>(width);
  const unsigned from = lane ^ static_cast<unsigned>(bits);
  return emulator::shuffle({file, line}, "__shfl_xor_sync", mask, value,
                           from < lane / w * w + w ? from : lane);
}

EMULATOR_UNWATCHED inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_HERE) {
  emulator::warp_exchange({file, line}, "__syncwarp", mask, 0, emulator::lane(), true);
}
EMULATOR_UNWATCHED inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::ballot({file, line}, "__ballot_sync", mask, predicate != 0);
}
EMULATOR_UNWATCHED inline int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::ballot({file, line}, "__any_sync", mask, predicate != 0) != 0;
}
EMULATOR_UNWATCHED inline int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::ballot({file, line}, "__all_sync", mask, predicate == 0) == 0;
}

// Bits.

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t(a) * b >> 32); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}

// The runtime.

enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct EmulatedStream*;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  cudaStream_t stream = nullptr;
};

namespace emulator {
inline cudaError_t last_error = cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= emulator::kMostParameters, "too many bytes of parameters");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  // Not on the stack: what kernels find there is the host's.
  const auto call = std::make_unique<Call>(Call{kernel, {static_cast<Parameters>(arguments)...}});
  const auto run = [](void* context) {
    const auto* c = static_cast<const Call*>(context);
    std::apply(c->kernel, c->parameters);
  };
  const bool good = emulator::launch(reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim,
                                     run, call.get());
  return emulator::last_error = good ? cudaSuccess : cudaErrorLaunchFailure;
}
