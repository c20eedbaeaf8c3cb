// Who loops over the tangents of k vectors on the CPU: rows, one for each sample and vector, over threads. No
// sum goes beyond a row, so that the bits do not depend on the number of threads.

#pragma once

#include "../tangents_checks.h"
#include "loops.h"

namespace lbgap {

constexpr int64_t kRowGrain = 32768;  // elements that a thread takes at least

// Calls run(begin, end) for parts of `rows` rows of `size` elements.
template <typename Run>
void for_rows(int64_t rows, int64_t size, const Run& run) {
  if (rows == 0 || size == 0) return;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(kRowGrain / size, 1), run);
}

}  // namespace lbgap
