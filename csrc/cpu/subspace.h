// Who loops over the entries of A on the CPU: tiles of kTile rows by panels of kPanel columns, drawn into the
// first-level cache, used, and forgotten. Rows beyond the end are drawn too; whoever uses them has zeros
// there.

#pragma once

#include "../rng.h"
#include "loops.h"

namespace lbgap {

constexpr int64_t kTile = 64;
constexpr int64_t kPanel = 4;
constexpr int64_t kChunk = 128;  // columns whose sums a block keeps at a time: one group of signs

enum Distribution : int64_t { kNormal, kUniform, kRademacher };

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

// Arguments that every op on A shares.
inline void check_matrix(int64_t p, int64_t distribution, int64_t stream, int64_t first) {
  STD_TORCH_CHECK(p >= 0 && p < (int64_t(1) << 33), "p must be between 0 and 2^33 - 1, got ", p);
  STD_TORCH_CHECK(distribution >= kNormal && distribution <= kRademacher, "unknown distribution ",
                  distribution);
  STD_TORCH_CHECK(stream >= 0 && stream <= int64_t(UINT32_MAX), "stream must be between 0 and 2^32 - 1, got ",
                  stream);
  STD_TORCH_CHECK(first >= 0, "first must not be negative, got ", first);
}

inline void check_floating(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
                  " must be float32 or float64");
}

inline Stream stream_of(int64_t seed, int64_t stream, int64_t first) {
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(stream), static_cast<uint64_t>(first)};
}

// A (p,) or (k, p), or any other shape of float64 zeros, on the device of `like`.
inline Tensor zeros(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor result =
      torch::stable::new_empty(like, {shape.begin(), shape.size()}, std::make_optional(ScalarType::Double));
  std::fill_n(result.mutable_data_ptr<double>(), result.numel(), 0.0);
  return result;
}

}  // namespace lbgap
