// What scheduler.cpp and memory.cpp know of each other.

#pragma once

#include <set>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

// When a thread does something. Two moments of one block are ordered by a block's barrier between them, and
// those of one warp by __syncwarp() too.
struct Moment {
  uint32_t block;  // numbered through all launches
  uint32_t epoch;  // barriers that the block has passed
  uint32_t warp_epoch;
  uint16_t thread;
};

extern bool running;                    // whether a thread of a kernel runs, rather than the host
extern bool descending;                 // whether the last thread of a block goes first
extern std::set<const void*> launched;  // kernels, since Python asked
extern Moment now;                      // of the thread that runs
extern uint32_t earlier;                // blocks below this number belong to earlier launches

struct Range {
  uintptr_t begin = 0, end = 0;
  bool has(uintptr_t at) const { return at >= begin && at < end; }
};
extern Range stacks;  // of all fibers
extern std::vector<Range>
    host_only;  // what kernels must not touch, such as a matrix that the host hands over
Range own_stack();

void begin_launch();
void begin_block();
void forget_stacks();  // ASan's marks on the stacks of fibers that will not go on

std::string name_of(const void* code);
std::string source_of(const void* code);

}  // namespace emulator
