// Included before each file: operators of the namespace lbgap go to lbgap_emulated, those for CUDA to the
// CPU.

#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(name, m) EMULATOR_LIBRARY(name##_emulated, m)
#define EMULATOR_LIBRARY(name, m) STABLE_TORCH_LIBRARY_FRAGMENT(name, m)

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) EMULATOR_IMPL(name##_emulated, EMULATOR_##key, m)
#define EMULATOR_IMPL(name, key, m) _STABLE_TORCH_LIBRARY_IMPL(name, key, m, __COUNTER__)
#define EMULATOR_CUDA CPU
