// history_cauchy on the CPU: the generalized Cauchy point (Byrd, Lu, Nocedal, Zhu 1995, section 4) without a
// sort.
//
// A walk over the buckets of cauchy.h finds the one in which the derivative turns positive; that one is
// divided again, down to single values of t. We depart from the paper where the derivative turns positive and
// negative again inside one bucket: such a minimizer is passed over for the next.

#include <torch/csrc/stable/library.h>

#include <memory>

#include "../cauchy.h"
#include "history.h"

namespace lbgap {
namespace {

constexpr int64_t kTile = 64;  // coordinates whose columns of the history are turned into rows together
constexpr int64_t kChunks = 64;
constexpr int64_t kSmallestChunk = 65536;

template <typename T>
struct Arguments {
  Bounds<T> bounds;
  const T* x;
  const T* g;
  const T* lower;
  const T* upper;
  const std::vector<const T*>& rows;
  T* times;  // out: breakpoints until the point is written
};

// What lies in [least, most]: the finite breakpoints above zero; and the largest projected gradient.
struct Range {
  uint64_t least = ~uint64_t{0};
  uint64_t most = 0;
  double projected = 0.0;
};

template <typename T>
LBGAP_INLINE void range_block(const Arguments<T>& a, int64_t begin, int64_t end, Range* range) {
  // The bits of a positive t are in its order, so least and most are found as numbers.
  T least[kLanes];
  T most[kLanes] = {};
  T projected[kLanes] = {};
  for (int64_t j = 0; j < kLanes; ++j) least[j] = T(__builtin_inf());
  const Breakpoint<T> f{a.bounds};
  const auto one = [&](int64_t i, int64_t j) {
    a.times[i] = f(a.x[i], a.g[i], a.lower[i], a.upper[i], least[j], most[j], projected[j]);
  };
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes)
#pragma GCC ivdep
    for (int64_t j = 0; j < kLanes; ++j) one(i + j, j);
  for (int64_t j = 0; i + j < end; ++j) one(i + j, j);
  range->projected = double(*std::max_element(projected, projected + kLanes));
  const T last = *std::max_element(most, most + kLanes);
  if (last > T(0)) {
    range->least = key_of(*std::min_element(least, least + kLanes));
    range->most = key_of(last);
  }
}

// Adds the coordinates with a key in [least, most] to their buckets, and on request those that never meet a
// bound to the bucket behind the last.
template <typename T>
LBGAP_INLINE void fill_block(const Arguments<T>& a, const Layout& layout, uint64_t least, uint64_t most,
                             int shift, bool infinite, int64_t begin, int64_t end, double* tile,
                             double* table) {
  using K = Key<T>;
  const K from = static_cast<K>(least);
  const bool any = most >= least;
  const K width = any ? static_cast<K>(most - least) : K{0};
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t part = std::min(kTile, end - at);
    K keys[kTile];
    int32_t chosen[kTile];
    int32_t index[kTile];
    // A key of t = 0 is 0, and least is at least 1 where there is any: from above it, from below it wraps
    // around.
    for (int64_t j = 0; j < part; ++j) keys[j] = key_of(a.times[at + j]) - from;
    for (int64_t j = 0; j < part; ++j) chosen[j] = any && keys[j] <= width ? 1 : 0;
    if (infinite)
      for (int64_t j = 0; j < part; ++j)
        chosen[j] = (a.times[at + j] == T(__builtin_inf()) && a.g[at + j] != T(0)) ? 2 : chosen[j];
    int64_t size = 0;
    for (int64_t j = 0; j < part; ++j) {
      index[size] = static_cast<int32_t>(j);
      size += chosen[j] > 0 ? 1 : 0;
    }
    if (size == 0) continue;
    for (int64_t k = 0; k < layout.rows; ++k) {
      const T* row = a.rows[static_cast<size_t>(k)] + at;
      for (int64_t j = 0; j < size; ++j) tile[j * layout.padded + k] = double(row[index[j]]);
    }
    for (int64_t j = 0; j < size; ++j) {
      const int64_t i = index[j];
      const bool never = chosen[i] == 2;
      double* into = table + (never ? kBuckets : static_cast<int64_t>(keys[i] >> shift)) * layout.stride;
      double* w = tile + j * layout.padded;
      const double g = double(a.g[at + i]);
      const double tg = never ? 0.0 : double(a.times[at + i]) * g;
      w[layout.rows] = g;
      for (int64_t k = 0; k < layout.padded; ++k) into[k] += g * w[k];
      for (int64_t k = 0; k < layout.padded; ++k) into[layout.padded + k] += tg * w[k];
      into[2 * layout.padded] += 1.0;
    }
  }
}

template <typename T>
LBGAP_INLINE void write_block(const Arguments<T>& a, double t, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    a.times[i] = path_point(a.bounds, t, a.times[i], a.x[i], a.g[i], a.lower[i], a.upper[i]);
}

#define LBGAP_CAUCHY(T)                                                                                  \
  LBGAP_CLONES void range_run(const Arguments<T>& a, int64_t begin, int64_t end, Range* range) {         \
    range_block(a, begin, end, range);                                                                   \
  }                                                                                                      \
  LBGAP_CLONES void fill_run(const Arguments<T>& a, const Layout& layout, uint64_t least, uint64_t most, \
                             int shift, bool infinite, int64_t begin, int64_t end, double* tile,         \
                             double* table) {                                                            \
    fill_block(a, layout, least, most, shift, infinite, begin, end, tile, table);                        \
  }                                                                                                      \
  LBGAP_CLONES void write_run(const Arguments<T>& a, double t, int64_t begin, int64_t end) {             \
    write_block(a, t, begin, end);                                                                       \
  }
LBGAP_CAUCHY(float)
LBGAP_CAUCHY(double)
#undef LBGAP_CAUCHY

template <typename T>
class Search {
 public:
  Search(const Arguments<T>& arguments, int64_t n, const double* K, double theta)
      : a_(arguments),
        n_(n),
        layout_(static_cast<int64_t>(arguments.rows.size())),
        K_(K),
        theta_(theta),
        all_(static_cast<size_t>(layout_.stride)),
        hit_(all_) {
    chunks_ = std::clamp<int64_t>(n / kSmallestChunk, 1, kChunks);
    chunk_ = std::max<int64_t>((n + chunks_ - 1) / chunks_, 1);
    chunks_ = (n + chunk_ - 1) / chunk_;
    tables_.reset(new double[static_cast<size_t>(std::max<int64_t>(chunks_, 1) * layout_.table())]);
  }

  // The first minimizer of the path.
  double find() {
    Range range = over_all();
    projected_ = range.projected;
    bool top = true;
    double t = 0.0;
    while (true) {
      const bool any = range.most >= range.least;
      const uint64_t width = any ? range.most - range.least : 0;
      const int shift = shift_of(width);
      fill(any ? range : Range{1, 0}, shift, top);
      if (top)
        for (int64_t b = 0; b <= kBuckets; ++b) add(&all_, row(b));
      top = false;
      if (path().over() || !any) return path().minimizer(t);
      if (walk(&range, shift, &t)) return t;
    }
  }

  double projected() const { return projected_; }
  // Entry i of W (z(t) - x).
  double point(int64_t i, double t) const { return path().point(i, t); }

 private:
  Path path() const { return {layout_, K_, theta_, all_.data(), hit_.data()}; }
  double* row(int64_t bucket) { return tables_.get() + bucket * layout_.stride; }
  static void add(std::vector<double>* to, const double* sums) {
    for (size_t i = 0; i < to->size(); ++i) (*to)[i] += sums[i];
  }

  // Walks over the buckets; true where t is the minimizer, else the range to divide next.
  bool walk(Range* range, int shift, double* t) {
    for (int64_t b = 0; b < kBuckets; ++b) {
      if (row(b)[layout_.number()] == 0) continue;
      const uint64_t first = range->least + (static_cast<uint64_t>(b) << shift);
      const uint64_t last = std::min(first + ((uint64_t{1} << shift) - 1), range->most);
      const std::vector<double> before = hit_;
      add(&hit_, row(b));
      const Path path_before{layout_, K_, theta_, all_.data(), before.data()};
      const Pass pass = pass_bucket<T>(path_before, path(), first, last);
      if (pass == Pass::kBefore) {
        *t = minimizer_before(path_before, *t, value_of<T>(first));
        hit_ = before;
        return true;
      }
      if (pass == Pass::kInside && shift > 0) {
        hit_ = before;  // the bucket is divided
        *range = {first, last, 0.0};
        return false;
      }
      *t = value_of<T>(last);
      if (pass == Pass::kInside) return true;
    }
    *t = path().minimizer(*t);
    return true;
  }

  Range over_all() {
    std::vector<Range> ranges(static_cast<size_t>(std::max<int64_t>(chunks_, 1)));
    in_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
      range_run(a_, begin, end, &ranges[static_cast<size_t>(chunk)]);
    });
    Range all;
    for (const Range& one : ranges) {
      all.least = std::min(all.least, one.least);
      all.most = std::max(all.most, one.most);
      all.projected = std::max(all.projected, one.projected);
    }
    return all;
  }

  void fill(const Range& range, int shift, bool infinite) {
    const int64_t size = layout_.table();
    in_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
      double* table = tables_.get() + chunk * size;
      std::fill(table, table + size, 0.0);
      std::vector<double> tile(static_cast<size_t>(kTile * layout_.padded), 0.0);
      fill_run(a_, layout_, range.least, range.most, shift, infinite, begin, end, tile.data(), table);
    });
    if (chunks_ == 0) std::fill(tables_.get(), tables_.get() + size, 0.0);
    for (int64_t step = 1; step < chunks_; step *= 2)
      for (int64_t i = 0; i + step < chunks_; i += 2 * step)
        for (int64_t e = 0; e < size; ++e) tables_[i * size + e] += tables_[(i + step) * size + e];
  }

  template <typename Run>
  void in_chunks(const Run& run) {
    torch::stable::parallel_for(0, chunks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) run(c, c * chunk_, std::min((c + 1) * chunk_, n_));
    });
  }

  const Arguments<T>& a_;
  int64_t n_;
  Layout layout_;
  const double* K_;
  double theta_;
  std::vector<double> all_;
  std::vector<double> hit_;
  int64_t chunks_;
  int64_t chunk_;
  double projected_ = 0.0;
  std::unique_ptr<double[]> tables_;
};

Tensor history_cauchy(const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y, const Tensor& K,
                      double theta, const Tensor& lower, const Tensor& upper, double absolute,
                      double relative, Tensor out) {
  check_model(out, x, g, S, Y, lower, upper, absolute, relative);
  const int64_t rows = 2 * S.size(0);
  const double* matrix = small_matrix(K, rows * rows, "K");
  const int64_t n = x.size(0);
  std::vector<double> found;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<const T*> history = rows_of_history<T>(S, Y);
    const Arguments<T> arguments{{static_cast<T>(absolute), static_cast<T>(relative)},
                                 x.const_data_ptr<T>(),
                                 g.const_data_ptr<T>(),
                                 lower.const_data_ptr<T>(),
                                 upper.const_data_ptr<T>(),
                                 history,
                                 out.mutable_data_ptr<T>()};
    Search<T> search(arguments, n, matrix, theta);
    const double t = search.find();
    found = {t, search.projected()};
    for (int64_t i = 0; i < rows; ++i) found.push_back(search.point(i, t));
    sum_blocks(n, kBlock, 0,
               [&](int64_t begin, int64_t end, double*) { write_run(arguments, t, begin, end); });
  });
  return float64_tensor(x, {2 + rows}, found.data());
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("history_cauchy", TORCH_BOX(&lbgap::history_cauchy)); }
