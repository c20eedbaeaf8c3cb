// Who loops over the entries of A on the CPU: tiles of kTile rows by panels of kPanel columns, drawn into the
// first-level cache, used, and forgotten. Rows beyond the end are drawn too; whoever uses them has zeros
// there.

#pragma once

#include "../rng.h"
#include "../subspace_checks.h"
#include "loops.h"

namespace lbgap {

constexpr int64_t kTile = 64;
constexpr int64_t kPanel = 4;
constexpr int64_t kChunk = 128;  // columns whose sums a block keeps at a time: one group of signs

// One tile of A. Panels are asked for in rising order, from a multiple of kChunk columns on.
template <typename D>
struct Tile {
  float entry[kPanel][kTile];
  uint32_t words[4][D::kColumns == kPanel ? 1 : kTile];

  LBGAP_INLINE void fill(const Stream& s, uint64_t row, int64_t panel) {
    if constexpr (D::kColumns == kPanel) {
#pragma GCC ivdep
      for (int64_t r = 0; r < kTile; ++r) {
        uint32_t w0, w1, w2, w3;
        float e[kPanel];
        draw(s, row + r, uint32_t(panel), w0, w1, w2, w3);
        D::entries(w0, w1, w2, w3, e);
        entry[0][r] = e[0];
        entry[1][r] = e[1];
        entry[2][r] = e[2];
        entry[3][r] = e[3];
      }
    } else {
      if (panel % (kChunk / kPanel) == 0) {
        const auto group = uint32_t(panel / (kChunk / kPanel));
#pragma GCC ivdep
        for (int64_t r = 0; r < kTile; ++r) {
          uint32_t w0, w1, w2, w3;
          draw(s, row + r, group, w0, w1, w2, w3);
          words[0][r] = w0;
          words[1][r] = w1;
          words[2][r] = w2;
          words[3][r] = w3;
        }
      }
      const int64_t column = panel * kPanel % kChunk;
      const uint32_t* word = words[column / 32];
      const int bit = int(column % 32);
#pragma GCC ivdep
      for (int64_t r = 0; r < kTile; ++r) {
        const uint32_t w = word[r];
        entry[0][r] = D::entry(w, bit);
        entry[1][r] = D::entry(w, bit + 1);
        entry[2][r] = D::entry(w, bit + 2);
        entry[3][r] = D::entry(w, bit + 3);
      }
    }
  }
};

inline int64_t panels_of(int64_t p) { return (p + kPanel - 1) / kPanel; }

// A (p,) or (k, p), or any other shape of float64 zeros, on the device of `like`.
inline Tensor zeros(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor result =
      torch::stable::new_empty(like, {shape.begin(), shape.size()}, std::make_optional(ScalarType::Double));
  std::fill_n(result.mutable_data_ptr<double>(), result.numel(), 0.0);
  return result;
}

}  // namespace lbgap
