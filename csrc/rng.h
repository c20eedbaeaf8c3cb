// Random numbers without state: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1,
// 2, 3") and the maps from its bits to the entries of a random matrix A, once, for whoever loops over them.
//
// Entry (i, j) of A depends on (distribution, seed, stream, i, j) alone. The counter is (i low, i high,
// group, stream), the key is the seed: neighbouring lanes differ in one counter word. A group is as many
// neighbouring columns as one call serves: 4, or 128 signs. Every operation here is exact or rounded once as
// IEEE 754 asks (no fused multiply-add, no library function but the square root), so that the bits are the
// same on every machine.

#pragma once

#include <cmath>
#include <cstdint>

#include "box.h"

namespace lbgap {

// Where A is drawn from; `first` is the index of its first row.
struct Stream {
  uint64_t seed;
  uint32_t stream;
  uint64_t first;
};

enum Distribution : int64_t { kNormal, kUniform, kRademacher };

inline Stream stream_of(int64_t seed, int64_t stream, int64_t first) {
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(stream), static_cast<uint64_t>(first)};
}

template <int kRounds>
LBGAP_INLINE void philox_rounds(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0,
                                uint32_t k1) {
  if constexpr (kRounds > 0) {
    const uint64_t a = uint64_t(c0) * 0xD2511F53u;
    const uint64_t b = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    philox_rounds<kRounds - 1>(c0, c1, c2, c3, k0 + 0x9E3779B9u, k1 + 0xBB67AE85u);
  }
}

// The 128 bits of row `row` and a group of columns.
LBGAP_INLINE void draw(const Stream& s, uint64_t row, uint32_t group, uint32_t& w0, uint32_t& w1,
                       uint32_t& w2, uint32_t& w3) {
  w0 = uint32_t(row);
  w1 = uint32_t(row >> 32);
  w2 = group;
  w3 = s.stream;
  philox_rounds<10>(w0, w1, w2, w3, uint32_t(s.seed), uint32_t(s.seed >> 32));
}

// Uniform on [-1, 1): multiples of 2^-23.
struct Uniform {
  static constexpr int kColumns = 4;

  static LBGAP_INLINE float entry(uint32_t w) { return float(int32_t(w) >> 8) * 0x1p-23f; }

  static LBGAP_INLINE void entries(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3, float* e) {
    e[0] = entry(w0);
    e[1] = entry(w1);
    e[2] = entry(w2);
    e[3] = entry(w3);
  }
};

// Standard normal by Box and Muller, up to 6.66 in magnitude. Polynomials: least maximal relative error, 3e-8
// for the logarithm, 5e-9 for sine and 1e-9 for cosine, before rounding.
struct Normal {
  static constexpr int kColumns = 4;

  // -2 log u for u = (w / 2 + 1/2) 2^-31, in (0, 1]; never negative.
  static LBGAP_INLINE float minus_two_log(uint32_t w) {
    const float v = float(int32_t(w >> 1)) + 0.5f;
    // v = 2^e m with m in [sqrt(1/2), sqrt(2)).
    const int32_t bits = __builtin_bit_cast(int32_t, v) - 0x3f3504f3;
    const int32_t e = bits >> 23;
    const float t = __builtin_bit_cast(float, (bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    const float square = t * t;
    float q = -0.174008757f;
    q = q * t + 0.285349846f;
    q = q * t + -0.298295379f;
    q = q * t + 0.331551671f;
    q = q * t + -0.399261266f;
    q = q * t + 0.500026762f;
    q = q * t + -0.66667819f;
    return float(31 - e) * 1.38629436f + ((square - (t + t)) + (t * square) * q);
  }

  static LBGAP_INLINE void pair(uint32_t a, uint32_t b, float& first, float& second) {
    const float radius = sqrtf(minus_two_log(a));
    // 31 bits are an angle pi/2 x in [-pi/2, pi/2], the last is the sign of the cosine.
    const float x = float(int32_t(b << 1)) * 0x1p-31f;
    const float square = x * x;
    float sine = 0.000151485103f;
    sine = sine * square + -0.00467376644f;
    sine = sine * square + 0.0796896815f;
    sine = sine * square + -0.645963728f;
    sine = sine * square + 1.57079637f;
    float cosine = 2.36014457e-05f;
    cosine = cosine * square + -0.000893537013f;
    cosine = cosine * square + 0.0199686065f;
    cosine = cosine * square + -0.233700514f;
    cosine = cosine * square + 1.0f;
    cosine = cosine * (1.0f - square);
    const uint32_t sign = b & 0x80000000u;
    first = radius * __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, cosine) ^ sign);
    second = radius * (sine * x);
  }

  static LBGAP_INLINE void entries(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3, float* e) {
    pair(w0, w1, e[0], e[1]);
    pair(w2, w3, e[2], e[3]);
  }
};

// -1 or 1: column 32 w + b of a group is bit b of word w.
struct Rademacher {
  static constexpr int kColumns = 128;

  static LBGAP_INLINE float entry(uint32_t w, int bit) {
    return __builtin_bit_cast(float, 0x3f800000u | ((w >> bit) << 31));
  }

  // The entry times a number.
  static LBGAP_INLINE double times(uint32_t w, int bit, double value) {
    return __builtin_bit_cast(double,
                              __builtin_bit_cast(uint64_t, value) ^ (uint64_t((w >> bit) & 1u) << 63));
  }
};

}  // namespace lbgap
