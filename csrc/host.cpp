// Facts about the build and the machine, without torch: what `lbgap info` prints and benchmarks divide by.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifndef LBGAP_FLAGS
#define LBGAP_FLAGS "unknown"
#endif
#ifndef LBGAP_CUDA
#define LBGAP_CUDA ""
#endif

namespace {

// Resolved by the dynamic loader exactly as the loops' target_clones are.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("default"))) const char* simd_level() { return "baseline"; }
__attribute__((target("avx2"))) const char* simd_level() { return "avx2"; }
__attribute__((target("avx512f"))) const char* simd_level() { return "avx512f"; }
#else
const char* simd_level() { return "baseline"; }
#endif

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

constexpr int kMostThreads = 4096;

// Threads that are joined whatever happens: one that is not ends the process when a later one does not start.
struct Pool {
  std::vector<std::thread> threads;
  ~Pool() {
    for (auto& thread : threads) thread.join();
  }
};

// Best of `repeats` copies of `bytes` bytes into warm memory, in bytes a second, read and write both counted.
double copy_bandwidth(int64_t bytes, int threads, int repeats) {
  if (bytes < 1 || threads < 1 || repeats < 1)
    throw std::invalid_argument("bytes, threads and repeats must be positive");
  if (threads > kMostThreads)
    throw std::invalid_argument("threads must be at most " + std::to_string(kMostThreads));
  const auto size = static_cast<size_t>(bytes);
  const std::unique_ptr<char[]> from(new char[size]);
  const std::unique_ptr<char[]> to(new char[size]);
  const auto in_parallel = [&](auto&& work) {
    Pool pool;
    for (int t = 0; t < threads; ++t)
      pool.threads.emplace_back([&, t] { work(size * t / threads, size * (t + 1) / threads); });
  };
  in_parallel([&](size_t begin, size_t end) {
    std::fill(from.get() + begin, from.get() + end, 1);
    std::fill(to.get() + begin, to.get() + end, 2);
  });
  double best = 1e300;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    in_parallel(
        [&](size_t begin, size_t end) { std::copy(from.get() + begin, from.get() + end, to.get() + begin); });
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return 2.0 * static_cast<double>(bytes) / best;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build facts, SIMD level and a copy-bandwidth probe.";
  m.def("compiler", &compiler, "Compiler and version that built the libraries.");
  m.def("flags", [] { return std::string(LBGAP_FLAGS); }, "Compiler flags of the CPU library.");
  m.def(
      "cuda_architectures", [] { return std::string(LBGAP_CUDA); },
      "GPU architectures of the CUDA library, empty where it was not built.");
  m.def(
      "simd_level", [] { return std::string(simd_level()); },
      "SIMD level that the loader chose on this machine.");
  m.def(
      "hardware_threads", [] { return std::thread::hardware_concurrency(); },
      "Threads that the machine runs at once.");
  m.def("copy_bandwidth", &copy_bandwidth, pybind11::arg("bytes"), pybind11::arg("threads"),
        pybind11::arg("repeats") = 5, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Best of `repeats` copies, in bytes a second, read and write both counted.");
}
