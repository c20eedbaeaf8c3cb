// What the stand-in cuda_runtime.h asks of the emulator. Blocks run one after the other; the threads of a
// block are fibers that are left only at barriers and warp operations, so a kernel runs the same way every
// time.

#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 48 << 10;
constexpr size_t kMostParameters = 4 << 10;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  uint64_t size() const { return uint64_t(x) * y * z; }
};

// A place in a kernel's source.
struct Site {
  const char* file;
  unsigned line;
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};

// Runs call(context) on every thread of every block. Returns false where that went wrong: error() says how.
bool launch(const void* kernel, Dim3 blocks, Dim3 threads, void (*call)(void*), void* context);
const char* error();

// Ends the launch from inside a kernel; outside of one it ends the process. Never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_at(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// What all threads of a block wait for; returns how many predicates are true.
unsigned block_barrier(Site site, const char* name, bool predicate);

// What the lanes in `mask` wait for: a lane gets the value of lane `source`, and all get the lanes whose
// value is not zero. `orders` says whether what lanes wrote before is visible to others afterwards.
struct Exchanged {
  uint64_t value;
  unsigned nonzero;
};
Exchanged warp_exchange(Site site, const char* name, unsigned mask, uint64_t value, unsigned source,
                        bool orders);

// The memory of one __shared__ variable, which `key` stands for; full of garbage where a block begins.
void* shared(const char* key, size_t size, size_t align);
template <typename T>
T& shared(const char* key) {
  return *static_cast<T*>(shared(key, sizeof(T), alignof(T)));
}

}  // namespace emulator

extern emulator::Dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs
