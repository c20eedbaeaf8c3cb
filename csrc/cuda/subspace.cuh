// What the subspace ops share on the GPU: entries of A are drawn into registers or shared memory, used, and
// forgotten.

#pragma once

#include "../rng.h"
#include "../subspace_checks.h"
#include "reduce.cuh"

namespace lbgap {

constexpr int kPoints = 4;  // or vectors, for which A is drawn once

template <typename D>
constexpr bool kSigns = D::kColumns == 128;

// Word `word` of the 128 bits of a row and a group of columns.
__device__ inline uint32_t draw_word(const Stream& s, uint64_t row, uint32_t group, int word) {
  uint32_t w0, w1, w2, w3;
  draw(s, row, group, w0, w1, w2, w3);
  return word == 0 ? w0 : (word == 1 ? w1 : (word == 2 ? w2 : w3));
}

// Four neighbouring entries of a row.
template <typename D>
__device__ inline void draw_panel(const Stream& s, uint64_t row, uint32_t panel, float (&e)[4]) {
  uint32_t w0, w1, w2, w3;
  draw(s, row, panel, w0, w1, w2, w3);
  D::entries(w0, w1, w2, w3, e);
}

// Calls f with a D of the distribution.
template <typename F>
void by_distribution(int64_t distribution, const F& f) {
  if (distribution == kNormal)
    f(Normal{});
  else if (distribution == kUniform)
    f(Uniform{});
  else
    f(Rademacher{});
}

}  // namespace lbgap
