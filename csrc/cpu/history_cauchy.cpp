// history_cauchy on the CPU: the generalized Cauchy point (Byrd, Lu, Nocedal, Zhu 1995, section 4) without a
// sort.
//
// Breakpoints are numbered by the bits of their t, which are in the order of t, and sorted into kBuckets
// buckets with the sums that the model's derivatives need. A walk over the buckets finds the one in which the
// derivative turns positive; that one is divided again, down to single values of t. We depart from the paper
// where the derivative turns positive and negative again inside one bucket: such a minimizer is passed over
// for the next.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <memory>

#include "history.h"

namespace lbgap {
namespace {

constexpr int64_t kBuckets = 256;
constexpr int64_t kTile = 64;  // coordinates whose columns of the history are turned into rows together
constexpr int64_t kChunks = 64;
constexpr int64_t kSmallestChunk = 65536;

template <typename T>
using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <typename T>
LBGAP_INLINE Key<T> key_of(T t) {
  Key<T> key;
  std::memcpy(&key, &t, sizeof(key));
  return key;
}

template <typename T>
double value_of(uint64_t key) {
  const auto bits = static_cast<Key<T>>(key);
  T t;
  std::memcpy(&t, &bits, sizeof(t));
  return static_cast<double>(t);
}

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
  const auto one = [&](int64_t i, int64_t j) {
    const T t = a.bounds.breakpoint(a.x[i], a.g[i], a.lower[i], a.upper[i]);
    const T size = a.g[i] < T(0) ? -a.g[i] : a.g[i];
    const T moved = size * (t < T(1) ? t : T(1));
    const T finite = t < T(__builtin_inf()) ? t : T(0);
    const T above = finite > T(0) ? finite : T(__builtin_inf());
    a.times[i] = t;
    projected[j] = moved > projected[j] ? moved : projected[j];
    least[j] = above < least[j] ? above : least[j];
    most[j] = finite > most[j] ? finite : most[j];
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

// A bucket's sums over its coordinates: g w for the rows w of the history and for g itself, padded to whole
// registers; t g w likewise; and their number.
struct Layout {
  int64_t rows;
  int64_t padded;
  int64_t stride;
  explicit Layout(int64_t count) : rows(count), padded((count + 8) / 8 * 8), stride(2 * padded + 8) {}
  int64_t table() const { return (kBuckets + 1) * stride; }
};

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
  const T step = static_cast<T>(t);
  for (int64_t i = begin; i < end; ++i) {
    const T g = a.g[i];
    const T inside = a.bounds.project(a.x[i] - step * g, a.lower[i], a.upper[i]);
    const T moved = double(a.times[i]) <= t ? a.bounds.wall(g, a.lower[i], a.upper[i]) : inside;
    a.times[i] = g == T(0) ? a.x[i] : moved;
  }
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

// The model's derivatives along the path, from the sums over all moving coordinates and over those that have
// met their bounds.
class Path {
 public:
  Path(const Layout& layout, const double* K, double theta)
      : layout_(layout), K_(K), theta_(theta), p_(size()), c_(size()) {
    all_.resize(static_cast<size_t>(layout.stride));
    hit_.resize(static_cast<size_t>(layout.stride));
  }

  void add_to_all(const double* sums) { add(&all_, sums); }
  void hit(const double* sums) { add(&hit_, sums); }
  const std::vector<double>& hits() const { return hit_; }
  void set_hits(const std::vector<double>& hits) { hit_ = hits; }
  bool over() const { return free_count() == 0; }

  // First and second derivative at t while nothing else is hit.
  std::array<double, 2> slope(double t) {
    point(t);
    const double g2 = all_[size()] - hit_[size()];
    double with_c = 0.0;
    double with_p = 0.0;
    for (int64_t i = 0; i < layout_.rows; ++i)
      for (int64_t j = 0; j < layout_.rows; ++j) {
        const double k = p_[static_cast<size_t>(i)] * K_[i * layout_.rows + j];
        with_c += k * c_[static_cast<size_t>(j)];
        with_p += k * p_[static_cast<size_t>(j)];
      }
    return {-g2 + theta_ * t * g2 - with_c, theta_ * g2 - with_p};
  }

  // Where the derivative is zero if it is negative at t and nothing else is hit.
  double minimizer(double t) {
    if (over()) return t;
    const auto [first, second] = slope(t);
    return second > 0 ? t - first / second : t;
  }

  // W (z(t) - x).
  const std::vector<double>& point(double t) {
    for (int64_t k = 0; k < layout_.rows; ++k) {
      const auto i = static_cast<size_t>(k);
      p_[i] = over() ? 0.0 : hit_[i] - all_[i];
      c_[i] = t * p_[i] - hit_[static_cast<size_t>(layout_.padded) + i];
    }
    return c_;
  }

 private:
  size_t size() const { return static_cast<size_t>(layout_.rows); }
  size_t count() const { return static_cast<size_t>(2 * layout_.padded); }
  double free_count() const { return all_[count()] - hit_[count()]; }
  static void add(std::vector<double>* to, const double* sums) {
    for (size_t i = 0; i < to->size(); ++i) (*to)[i] += sums[i];
  }

  Layout layout_;
  const double* K_;
  double theta_;
  std::vector<double> all_;
  std::vector<double> hit_;
  std::vector<double> p_;
  std::vector<double> c_;
};

template <typename T>
class Search {
 public:
  Search(const Arguments<T>& arguments, int64_t n, const double* K, double theta)
      : a_(arguments), n_(n), layout_(static_cast<int64_t>(arguments.rows.size())), path_(layout_, K, theta) {
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
      int shift = 0;
      while ((width >> shift) >= kBuckets) ++shift;
      fill(any ? range : Range{1, 0}, shift, top);
      if (top)
        for (int64_t b = 0; b <= kBuckets; ++b) path_.add_to_all(row(b));
      top = false;
      if (path_.over() || !any) return path_.minimizer(t);
      if (walk(&range, shift, &t)) return t;
    }
  }

  double projected() const { return projected_; }
  const std::vector<double>& point(double t) { return path_.point(t); }

 private:
  double* row(int64_t bucket) { return tables_.get() + bucket * layout_.stride; }

  // Walks over the buckets; true where t is the minimizer, else the range to divide next.
  bool walk(Range* range, int shift, double* t) {
    for (int64_t b = 0; b < kBuckets; ++b) {
      if (row(b)[2 * layout_.padded] == 0) continue;
      const uint64_t first = range->least + (static_cast<uint64_t>(b) << shift);
      const uint64_t last = std::min(first + ((uint64_t{1} << shift) - 1), range->most);
      if (path_.slope(value_of<T>(first))[0] >= 0) {
        *t = std::clamp(path_.minimizer(*t), *t, value_of<T>(first));
        return true;
      }
      const std::vector<double> before = path_.hits();
      path_.hit(row(b));
      const bool turned = path_.over() || path_.slope(value_of<T>(last))[0] >= 0;
      if (turned && shift > 0) {
        path_.set_hits(before);  // the bucket is divided
        *range = {first, last, 0.0};
        return false;
      }
      *t = value_of<T>(last);
      if (turned) return true;
    }
    *t = path_.minimizer(*t);
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
  Path path_;
  int64_t chunks_;
  int64_t chunk_;
  double projected_ = 0.0;
  std::unique_ptr<double[]> tables_;
};

Tensor history_cauchy(const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y, const Tensor& K,
                      double theta, const Tensor& lower, const Tensor& upper, double absolute,
                      double relative, Tensor out) {
  check_bounds(x, lower, upper, absolute, relative);
  check_vector(g, x, "g");
  check_vector(out, x, "out");
  check_history(S, Y, x);
  check_apart(out, x, "x");
  check_apart(out, g, "g");
  check_apart(out, S, "S");
  check_apart(out, Y, "Y");
  check_apart(out, lower, "lower");
  check_apart(out, upper, "upper");
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
    const std::vector<double>& point = search.point(t);
    found.insert(found.end(), point.begin(), point.end());
    sum_blocks(n, kBlock, 0,
               [&](int64_t begin, int64_t end, double*) { write_run(arguments, t, begin, end); });
  });
  return float64_tensor(x, {2 + rows}, found.data());
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CPU, m) { m.impl("history_cauchy", TORCH_BOX(&lbgap::history_cauchy)); }
