// history_cauchy on the GPU: the generalized Cauchy point (Byrd, Lu, Nocedal, Zhu 1995, section 4) without a
// sort of all breakpoints and without the host.
//
// As on the CPU, a walk over the buckets of cauchy.h finds the one in which the derivative turns positive,
// and that one is divided again. Each division takes eight bits of a key, so that as many rounds as a key has
// bytes suffice; those that come after the end of the search return at once. A chunk of coordinates has a
// table of buckets of its own. Inside a tile its coordinates are sorted by bucket, and a warp adds up one row
// of the history, neighbours of one bucket by shuffles: no atomics, the same bits on every run.

#include <torch/csrc/stable/library.h>

#include "../cauchy.h"
#include "history.cuh"
#include "map.cuh"

namespace lbgap {
namespace {

constexpr int kTile = 1024;
constexpr int kLocalBits = 10;  // of a place in a tile
constexpr unsigned kNone = 0xffffffffu;
constexpr int64_t kUnit = 32768;
constexpr int64_t kMostChunks = 264;
static_assert(kTile == 1 << kLocalBits && kThreads == kBuckets);

// Breakpoints, and their least, their most and the largest projected gradient.
template <typename T>
struct Times {
  static constexpr int kSums = 3;
  Breakpoint<T> f;

  static __device__ double start(int s) { return s == 0 ? __builtin_inf() : 0.0; }
  static __device__ double join(int s, double a, double b) { return (s == 0 ? b < a : b > a) ? b : a; }

  __device__ T operator()(T x, T g, T lower, T upper, double* sums) const {
    T least = static_cast<T>(sums[0]);
    T most = static_cast<T>(sums[1]);
    T projected = static_cast<T>(sums[2]);
    const T t = f(x, g, lower, upper, least, most, projected);
    sums[0] = least;
    sums[1] = most;
    sums[2] = projected;
    return t;
  }
};

// Where the search stands: the keys that are divided next, and t, up to which the path is known to fall.
struct State {
  uint64_t least;
  uint64_t most;
  int32_t shift;
  bool any;   // whether there is a key
  bool top;   // whether nothing was divided yet
  bool done;  // t is the minimizer
  double t;

  // The keys of bucket b.
  __device__ uint64_t first(int64_t b) const { return least + (static_cast<uint64_t>(b) << shift); }
  __device__ uint64_t last(int64_t b) const {
    const uint64_t end = first(b) + ((uint64_t{1} << shift) - 1);
    return end < most ? end : most;
  }

  __device__ void divide(uint64_t from, uint64_t to) {
    least = from;
    most = to;
    shift = shift_of(to - from);
  }
};

template <typename T>
__global__ void begin_kernel(const double* range, State* state) {
  if (threadIdx.x > 0) return;
  *state = {};
  state->top = true;
  state->any = range[1] > 0;
  if (state->any) state->divide(key_of(static_cast<T>(range[0])), key_of(static_cast<T>(range[1])));
}

// The bucket of a coordinate, or kNone.
template <typename T>
__device__ inline unsigned bucket_of(const State& state, T t, T g) {
  const auto key = static_cast<uint64_t>(key_of(t));
  if (state.any && key >= state.least && key <= state.most)
    return static_cast<unsigned>((key - state.least) >> state.shift);
  return state.top && t == T(__builtin_inf()) && g != T(0) ? static_cast<unsigned>(kBuckets) : kNone;
}

// Sorts kTile different numbers (Batcher 1968, bitonic).
__device__ inline void sort_tile(unsigned* keys) {
  for (unsigned size = 2; size <= kTile; size *= 2)
    for (unsigned stride = size / 2; stride > 0; stride /= 2) {
      for (unsigned c = threadIdx.x; c < kTile / 2; c += kThreads) {
        const unsigned i = 2 * c - (c & (stride - 1));
        const unsigned a = keys[i];
        const unsigned b = keys[i + stride];
        if ((a > b) == ((i & size) == 0)) {
          keys[i] = b;
          keys[i + stride] = a;
        }
      }
      __syncthreads();
    }
}

// Adds g w and t g w of one row w for the sorted coordinates to the buckets' sums; w is g itself where `row`
// is null, and their number is added then.
template <typename T>
__device__ void add_row(const unsigned* keys, int chosen, const T* g, const T* t, const T* row,
                        int64_t column, const Layout& layout, double* table) {
  const int lane = threadIdx.x % kWarp;
  for (int at = 0; at < chosen; at += kWarp) {
    const bool inside = at + lane < chosen;
    const unsigned key = inside ? keys[at + lane] : kNone;
    const unsigned bucket = key >> kLocalBits;
    const unsigned place = key & (kTile - 1);
    const double own = inside ? double(g[place]) : 0.0;
    const double w = !inside ? 0.0 : (row == nullptr ? own : double(row[place]));
    const double time = inside && bucket < kBuckets ? double(t[place]) : 0.0;
    double sum = own * w;
    double timed = time * own * w;
    double number = inside ? 1.0 : 0.0;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const double before = __shfl_up_sync(kFull, sum, offset);
      const double timed_before = __shfl_up_sync(kFull, timed, offset);
      const double number_before = __shfl_up_sync(kFull, number, offset);
      const unsigned bucket_before = __shfl_up_sync(kFull, bucket, offset);
      const bool same = lane >= offset && bucket_before == bucket;
      sum += same ? before : 0.0;
      timed += same ? timed_before : 0.0;
      number += same ? number_before : 0.0;
    }
    const unsigned bucket_after = __shfl_down_sync(kFull, bucket, 1);
    if (inside && (lane == kWarp - 1 || bucket_after != bucket)) {
      double* into = table + bucket * layout.stride + column;
      into[0] += sum;
      into[layout.padded] += timed;
      if (row == nullptr) table[bucket * layout.stride + layout.number()] += number;
    }
    __syncwarp();
  }
}

// Fills the table of each chunk with the coordinates whose keys are divided now.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    fill_kernel(const State* state_at, const T* times, const T* gradient, History<T> history, int64_t n,
                int64_t size, int64_t count, Layout layout, double* tables) {
  __shared__ unsigned keys[kTile];
  __shared__ T g[kTile];
  __shared__ T t[kTile];
  const State state = *state_at;
  if (state.done) return;
  for (int64_t chunk = blockIdx.x; chunk < count; chunk += gridDim.x) {
    double* table = tables + chunk * layout.table();
    for (int64_t e = threadIdx.x; e < layout.table(); e += kThreads) table[e] = 0.0;
    const int64_t end = (chunk + 1) * size < n ? (chunk + 1) * size : n;
    for (int64_t begin = chunk * size; begin < end; begin += kTile) {
      int mine = 0;
      for (int place = threadIdx.x; place < kTile; place += kThreads) {
        unsigned key = kNone;
        if (begin + place < end) {
          t[place] = times[begin + place];
          g[place] = gradient[begin + place];
          const unsigned bucket = bucket_of(state, t[place], g[place]);
          if (bucket != kNone) key = bucket << kLocalBits | static_cast<unsigned>(place);
        }
        keys[place] = key;
        mine += key != kNone ? 1 : 0;
      }
      // Each thread has a few places, so the number of the chosen is a sum over bits.
      int chosen = 0;
#pragma unroll
      for (int bit = 0; bit < 3; ++bit) chosen += __syncthreads_count(mine >> bit & 1) << bit;
      if (chosen == 0) continue;
      sort_tile(keys);
      for (int64_t k = threadIdx.x / kWarp; k <= layout.rows; k += kThreads / kWarp)
        add_row(keys, chosen, g, t, k == layout.rows ? nullptr : history.row(k) + begin, k, layout, table);
      __syncthreads();  // the tile is made anew
    }
  }
}

// table[e] = the sum of entry e over the tables of all chunks, transposed: bucket by bucket within an entry.
__global__ void add_tables_kernel(const State* state, const double* tables, int64_t count, Layout layout,
                                  double* table) {
  if (state->done) return;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t e = blockIdx.x * int64_t(kThreads) + threadIdx.x; e < layout.table(); e += step) {
    double sum = 0.0;
    for (int64_t chunk = 0; chunk < count; ++chunk) sum += tables[chunk * layout.table() + e];
    table[e % layout.stride * (kBuckets + 1) + e / layout.stride] = sum;
  }
}

// Entry e of all coordinates, and of those hit before each bucket: before[e, b], b up to kBuckets.
__device__ inline void add_buckets(bool top, const double* table, const Layout& layout, double* all,
                                   double* hit, double* before) {
  for (int64_t e = threadIdx.x; e < layout.stride; e += kThreads) {
    const double* column = table + e * (kBuckets + 1);
    double* into = before + e * (kBuckets + 1);
    double sum = top ? 0.0 : hit[e];
    for (int64_t b = 0; b < kBuckets; ++b) {
      into[b] = sum;
      sum += column[b];
    }
    into[kBuckets] = sum;
    if (top) {
      double total = 0.0;
      for (int64_t b = 0; b <= kBuckets; ++b) total += column[b];
      all[e] = total;
    }
  }
  __syncthreads();
}

// The first bucket that the walk does not pass, and how; one thread a bucket.
template <typename T>
__device__ int first_stop(const State& state, const double* numbers, const Path& before, const Path& after,
                          Pass* how) {
  __shared__ Pass passes[kBuckets];
  const int b = static_cast<int>(threadIdx.x);
  passes[b] = Pass::kOn;
  if (numbers[b] > 0) passes[b] = pass_bucket<T>(before, after, state.first(b), state.last(b));
  __syncthreads();
  int stop = 0;
  while (stop < kBuckets && passes[stop] == Pass::kOn) ++stop;
  *how = stop < kBuckets ? passes[stop] : Pass::kOn;
  return stop;
}

// Walks over the buckets; says what is divided next, or ends the search: then t, the largest projected
// gradient and W (z(t) - x) go to `found`.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    walk_kernel(State* state_at, const double* range, const double* table, Layout layout, const double* K,
                double theta, double* all, double* hit, double* before, double* found) {
  __shared__ State next;
  __shared__ int64_t bucket;  // those before it are hit
  const State state = *state_at;
  if (state.done) return;
  add_buckets(state.top, table, layout, all, hit, before);
  const auto path = [&](int64_t b) { return Path{layout, K, theta, all, before + b, kBuckets + 1}; };
  const double* numbers = table + layout.number() * (kBuckets + 1);
  Pass how;
  const int stop = first_stop<T>(state, numbers, path(threadIdx.x), path(threadIdx.x + 1), &how);
  if (threadIdx.x == 0) {
    next = state;
    next.top = false;
    next.done = how != Pass::kInside || state.shift == 0;
    bucket = how == Pass::kInside && next.done ? stop + 1 : stop;
    int passed = stop - 1;
    while (passed >= 0 && numbers[passed] == 0) --passed;
    if (passed >= 0) next.t = value_of<T>(state.last(passed));
    if (how == Pass::kBefore) next.t = minimizer_before(path(stop), next.t, value_of<T>(state.first(stop)));
    if (how == Pass::kInside && next.done) next.t = value_of<T>(state.last(stop));
    if (how == Pass::kInside && !next.done) next.divide(state.first(stop), state.last(stop));
    if (how == Pass::kOn) next.t = path(stop).minimizer(next.t);
    *state_at = next;
    if (next.done) {
      found[0] = next.t;
      found[1] = range[2];
    }
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < layout.stride; e += kThreads)
    hit[e] = before[e * (kBuckets + 1) + bucket];
  if (next.done)
    for (int64_t i = threadIdx.x; i < layout.rows; i += kThreads)
      found[2 + i] = path(bucket).point(i, next.t);
}

// The point of the path, from the coordinates' own breakpoints.
template <typename T>
struct PathPoint {
  static constexpr int kSums = 0;
  Bounds<T> bounds;
  const double* t;

  __device__ T operator()(T time, T x, T g, T lower, T upper, double* /*sums*/) const {
    return path_point(bounds, *t, time, x, g, lower, upper);
  }
};

template <typename T>
void search(const Device& device, const Tensor& x, const Tensor& g, const History<T>& history,
            const Tensor& K, double theta, const Tensor& range, Tensor& times, const Tensor& found) {
  const int64_t n = x.size(0);
  const Layout layout(2 * history.c);
  const Chunks chunks(n, kUnit, kMostChunks);
  const Tensor tables = scratch(x, {chunks.count, layout.table()});
  const Tensor table = scratch(x, {layout.table()});
  const Tensor before = scratch(x, {layout.table()});
  const Tensor sums = scratch(x, {2, layout.stride});
  const Tensor kept = scratch(x, {sizeof(State) / sizeof(double)});
  auto* state = reinterpret_cast<State*>(data_of(kept));
  device.run(begin_kernel<T>, 1, kWarp, data_of(range), state);
  for (size_t level = 0; level < sizeof(T); ++level) {
    device.run(fill_kernel<T>, chunks.count, kThreads, state, times.const_data_ptr<T>(),
               g.const_data_ptr<T>(), history, n, chunks.size, chunks.count, layout, data_of(tables));
    device.run(add_tables_kernel, (layout.table() + kThreads - 1) / kThreads, kThreads, state,
               data_of(tables), chunks.count, layout, data_of(table));
    device.run(walk_kernel<T>, 1, kThreads, state, data_of(range), data_of(table), layout, data_of(K), theta,
               data_of(sums), data_of(sums) + layout.stride, data_of(before), data_of(found));
  }
}

Tensor history_cauchy(const Tensor& x, const Tensor& g, const Tensor& S, const Tensor& Y, const Tensor& K,
                      double theta, const Tensor& lower, const Tensor& upper, double absolute,
                      double relative, Tensor out) {
  check_model(out, x, g, S, Y, lower, upper, absolute, relative);
  const int64_t rows = 2 * S.size(0);
  const double* matrix = small_matrix(K, rows * rows, "K");
  const Device device(x);
  const Tensor on_device = upload(device, x, matrix, rows * rows);
  const Tensor found = scratch(x, {2 + rows});
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Bounds<T> bounds = bounds_of<T>(absolute, relative);
    const Tensor range = map<T, 4>(device, Times<T>{{bounds}}, x, {&x, &g, &lower, &upper}, &out);
    search<T>(device, x, g, history_of<T>(S, Y), on_device, theta, range, out, found);
    map<T, 5>(device, PathPoint<T>{bounds, data_of(found)}, x, {&out, &x, &g, &lower, &upper}, &out);
  });
  return found;
}

}  // namespace
}  // namespace lbgap

STABLE_TORCH_LIBRARY_IMPL(lbgap, CUDA, m) { m.impl("history_cauchy", TORCH_BOX(&lbgap::history_cauchy)); }
