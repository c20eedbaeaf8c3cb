// The threads of a block as fibers. Which one goes on is decided by its number alone, so that the warp that
// goes first runs as far ahead of the others as barriers let it: what is not ordered shows in one of the two
// directions.

#include "scheduler.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bitset>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

emulator::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

bool running = false;
bool descending = false;
Moment now{};
uint32_t earlier = 0;
Range stacks;
std::set<const void*> launched;

namespace {

constexpr size_t kStack =
    (128 << 10) + 832;  // no power of two: all stacks would compete for the same cache lines

enum class Wait { kNothing, kBlock, kWarp, kEnd };

struct Fiber {
  void* registers[5];
  bool begun = false;
  Wait wait = Wait::kNothing;
  Site site{};
  const char* name = nullptr;
  unsigned mask = 0;
  uint64_t value = 0;
  unsigned source = 0;
  bool orders = false;
  Exchanged received{};
};

struct Block {
  const void* kernel = nullptr;
  void (*call)(void*) = nullptr;
  void* context = nullptr;
  unsigned count = 0;
  unsigned left = 0;        // that have not ended
  unsigned at_barrier = 0;  // that wait for the whole block
  unsigned barrier_result = 0;
  uint32_t epoch = 0;
  uint32_t warp_epoch[kMostThreads / kWarp] = {};
  unsigned in_exchange[kMostThreads / kWarp] = {};  // lanes that wait for others of their warp
  uint64_t ready[kMostThreads / 64] = {};           // by rank, the first goes on
};

Fiber fibers[kMostThreads];
Block block;
void* host[5];
std::string problem;
uint32_t blocks_begun = 0;

unsigned rank_of(unsigned thread) { return descending ? block.count - 1 - thread : thread; }

void set_ready(unsigned thread) {
  fibers[thread].wait = Wait::kNothing;
  block.ready[rank_of(thread) / 64] |= uint64_t(1) << (rank_of(thread) % 64);
}

// swapcontext() would ask the kernel for the signal mask at every switch. The jump must not be inlined into
// the function that its target lies in.
[[gnu::noinline, noreturn]] void jump(void** to) { __builtin_longjmp(to, 1); }

[[gnu::noinline]] void switch_to(void** from, void** to) {
  if (__builtin_setjmp(from) == 0) jump(to);
}

void go_on();

void fiber_main() {
  for (;;) {
    block.call(block.context);
    fibers[now.thread].wait = Wait::kEnd;
    --block.left;
    go_on();
  }
}

void enter(unsigned thread) {
  Fiber& fiber = fibers[thread];
  const Dim3 d = blockDim;
  threadIdx = {thread % d.x, thread / d.x % d.y, thread / d.x / d.y};
  now.thread = static_cast<uint16_t>(thread);
  now.epoch = block.epoch;
  now.warp_epoch = block.warp_epoch[thread / kWarp];
  if (fiber.begun) jump(fiber.registers);
  fiber.begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = reinterpret_cast<void*>(stacks.begin + thread * kStack);
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
  std::abort();
}

std::string describe(Site site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

// "threads 0, 1, 2, ... (128) wait at __syncthreads, reduce.cuh:44; thread 3 has ended".
std::string describe_waits() {
  std::map<std::string, std::vector<unsigned>> groups;
  for (unsigned thread = 0; thread < block.count; ++thread) {
    const Fiber& fiber = fibers[thread];
    const bool ended = fiber.wait == Wait::kEnd;
    groups[ended ? "ended" : std::string("at ") + fiber.name + ", " + describe(fiber.site)].push_back(thread);
  }
  std::string result;
  for (const auto& [what, threads] : groups) {
    result += result.empty() ? "" : "; ";
    result += threads.size() == 1 ? "thread" : std::to_string(threads.size()) + " threads";
    for (size_t i = 0; i < std::min<size_t>(threads.size(), 4); ++i)
      result += (i > 0 ? ", " : " ") + std::to_string(threads[i]);
    result += (threads.size() > 4 ? ", ... " : " ") + what;
  }
  return result;
}

[[noreturn]] void stop(const std::string& what, bool of_a_thread) {
  problem = name_of(block.kernel) + ", block " + std::to_string(blockIdx.x);
  if (of_a_thread) problem += ", thread " + std::to_string(now.thread);
  problem += ": " + what;
  jump(host);
}

// Hands on to the next thread that can run, from a thread that waits or has ended.
void go_on() {
  for (unsigned word = 0; word * 64 < block.count; ++word)
    if (block.ready[word] != 0) {
      const unsigned rank = word * 64 + static_cast<unsigned>(__builtin_ctzll(block.ready[word]));
      block.ready[word] &= block.ready[word] - 1;
      Fiber& self = fibers[now.thread];
      if (__builtin_setjmp(self.registers) == 0) enter(rank_of(rank));
      return;
    }
  if (block.left == 0) switch_to(fibers[now.thread].registers, host);
  // Ended threads come here again for the next block.
  if (block.left == 0 || fibers[now.thread].wait == Wait::kNothing) return;
  stop("threads wait for each other: " + describe_waits(), false);
}

void release_block() {
  unsigned result = 0;
  for (unsigned thread = 0; thread < block.count; ++thread) {
    if (!(fibers[thread].site == fibers[0].site))
      stop("threads are at different barriers: " + describe_waits(), false);
    result += fibers[thread].value != 0;
  }
  block.barrier_result = result;
  block.at_barrier = 0;
  ++block.epoch;
  for (unsigned thread = 0; thread < block.count; ++thread) set_ready(thread);
}

// Lets the lanes of a warp go on if all in the mask of `thread` are at the same place.
void release_warp(unsigned thread) {
  const Fiber& self = fibers[thread];
  const unsigned first = thread / kWarp * kWarp;
  unsigned& waiting = block.in_exchange[thread / kWarp];
  waiting |= 1u << (thread - first);
  if (first + kWarp > block.count && self.mask >> (block.count - first) != 0)
    stop(std::string(self.name) + " has lanes in its mask that there are not", true);
  if ((waiting & self.mask) != self.mask) return;
  unsigned nonzero = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(self.mask >> lane & 1)) continue;
    const Fiber& other = fibers[first + lane];
    if (!(other.site == self.site) || other.mask != self.mask) return;
    nonzero |= (other.value != 0 ? 1u : 0u) << lane;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (self.mask >> lane & 1) {
      Fiber& other = fibers[first + lane];
      other.received = {fibers[first + other.source].value, nonzero};
      set_ready(first + lane);
    }
  waiting &= ~self.mask;
  if (self.orders) ++block.warp_epoch[thread / kWarp];
}

void wait(Site site, const char* name, Wait kind) {
  Fiber& self = fibers[now.thread];
  self.site = site;
  self.name = name;
  self.wait = kind;
  if (kind == Wait::kBlock && ++block.at_barrier == block.count) release_block();
  if (kind == Wait::kWarp) release_warp(now.thread);
  go_on();
}

void run_block(unsigned number) {
  blockIdx = {number % gridDim.x, number / gridDim.x % gridDim.y, number / gridDim.x / gridDim.y};
  now.block = blocks_begun++;
  block.left = block.count;
  block.at_barrier = 0;
  begin_block();
  for (unsigned thread = 0; thread < block.count; ++thread) set_ready(thread);
  const unsigned first = rank_of(0);
  block.ready[0] &= ~uint64_t(1);
  running = true;
  if (__builtin_setjmp(host) == 0) enter(first);
  running = false;
}

// No fiber of a launch that failed goes on.
void clear() {
  for (Fiber& fiber : fibers) fiber = {};
  std::fill_n(block.in_exchange, std::size(block.in_exchange), 0);
  std::fill_n(block.ready, std::size(block.ready), 0);
  forget_stacks();
}

std::string format(const char* text, va_list arguments) {
  char buffer[1000];
  std::vsnprintf(buffer, sizeof(buffer), text, arguments);
  return buffer;
}

[[noreturn]] void fail_with(const std::string& what) {
  if (running) stop(what, true);
  std::fprintf(stderr, "outside of kernels: %s\n", what.c_str());
  std::abort();
}

}  // namespace

Range own_stack() {
  const uintptr_t begin = stacks.begin + now.thread * kStack;
  return {begin, begin + kStack};
}

const char* error() { return problem.c_str(); }

void fail(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  const std::string what = format(text, arguments);
  va_end(arguments);
  fail_with(what);
}

void fail_at(Site site, const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  const std::string what = format(text, arguments);
  va_end(arguments);
  fail_with(what + ", at " + describe(site));
}

unsigned block_barrier(Site site, const char* name, bool predicate) {
  fibers[now.thread].value = predicate;
  wait(site, name, Wait::kBlock);
  return block.barrier_result;
}

Exchanged warp_exchange(Site site, const char* name, unsigned mask, uint64_t value, unsigned source,
                        bool orders) {
  Fiber& self = fibers[now.thread];
  if (!(mask >> (now.thread % kWarp) & 1))
    fail_at(site, "%s by a lane that is not in the mask %08x", name, mask);
  if (!(mask >> source & 1))
    fail_at(site, "%s reads lane %u, which is not in the mask %08x", name, source, mask);
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.orders = orders;
  wait(site, name, Wait::kWarp);
  return self.received;
}

bool launch(const void* kernel, Dim3 blocks, Dim3 threads, void (*call)(void*), void* context) {
  if (stacks.begin == 0) {
    void* memory = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    stacks = {reinterpret_cast<uintptr_t>(memory),
              reinterpret_cast<uintptr_t>(memory) + kMostThreads * kStack};
  }
  problem.clear();
  if (blocks.size() == 0 || threads.size() == 0 || threads.size() > kMostThreads) {
    problem = std::to_string(blocks.size()) + " blocks of " + std::to_string(threads.size()) +
              " threads are no valid launch of " + name_of(kernel);
    return false;
  }
  launched.insert(kernel);
  block.kernel = kernel;
  block.call = call;
  block.context = context;
  block.count = static_cast<unsigned>(threads.size());
  gridDim = blocks;
  blockDim = threads;
  earlier = blocks_begun;
  begin_launch();
  for (unsigned number = 0; number < blocks.size() && problem.empty(); ++number) run_block(number);
  if (!problem.empty()) clear();
  return problem.empty();
}

}  // namespace emulator
