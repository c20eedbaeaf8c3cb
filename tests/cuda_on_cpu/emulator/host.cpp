// Stands in for what torch exports only where it was built with CUDA; and what Python calls.

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "scheduler.h"

extern "C" {

int32_t aoti_torch_get_current_cuda_stream(int32_t /*device*/, void** stream) {
  *stream = nullptr;
  return 0;
}

int32_t aoti_torch_create_device_guard(int32_t /*device*/, void** guard) {
  *guard = nullptr;
  return 0;
}

int32_t aoti_torch_delete_device_guard(void* /*guard*/) { return 0; }

void torch_c10_cuda_check_msg(int32_t error, const char* /*file*/, const char* /*function*/,
                              uint32_t /*line*/, bool /*assertions*/, char** message) {
  *message = error == 0 ? nullptr : strdup(emulator::error());
}

void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

#define EMULATOR_PYTHON __attribute__((visibility("default")))

EMULATOR_PYTHON void emulator_set_order(int last_first) { emulator::descending = last_first != 0; }

EMULATOR_PYTHON void emulator_host_memory(uintptr_t begin, size_t size) {
  emulator::host_only.push_back({begin, begin + size});
}

EMULATOR_PYTHON void emulator_forget_host_memory() { emulator::host_only.clear(); }

// The names of the kernels launched since the last call, one a line.
EMULATOR_PYTHON const char* emulator_launched() {
  static std::string names;
  names.clear();
  for (const void* kernel : emulator::launched) names += emulator::name_of(kernel) + "\n";
  emulator::launched.clear();
  return names.c_str();
}

}  // extern "C"
