// Every access to memory that compiled code makes comes here first, by the names that compilers give
// ThreadSanitizer's functions, and arithmetic that went wrong by UndefinedBehaviorSanitizer's. What memory is
// in use AddressSanitizer knows, which serves the whole process. An access that is wrong ends the launch
// before it is made. Races are found exactly, between units that threads of one launch touch without a
// barrier between them: 16 bits of shared, 32 of other memory. What is smaller is not followed.

#include <dlfcn.h>
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "scheduler.h"

extern "C" void __sanitizer_symbolize_pc(void* pc, const char* format, char* out, size_t size);
extern "C" void __asan_get_shadow_mapping(size_t* scale, size_t* offset);

namespace emulator {

std::vector<Range> host_only;

namespace {

// Who touched a unit last; `readers` tells one thread from more of its warp and of its block (or of any).
enum Readers : uint8_t { kNobody, kOne, kWarpmates, kMany };
struct Unit {
  Moment written{};
  Moment read{};
  bool is_written = false;
  Readers readers = kNobody;
};

constexpr uintptr_t kPageBits = 12;
constexpr size_t kMostPages = 8192;
struct Page {
  Unit units[size_t(1) << (kPageBits - 2)];
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
constexpr size_t kRecent = 256;
Page* recent[kRecent];
uintptr_t recent_number[kRecent];
Range host_stack;
size_t shadow_offset = 0;

constexpr size_t kRedzone = 64;
alignas(64) char arena[kMostShared + (64 + 1) * kRedzone];
const Range arena_range{reinterpret_cast<uintptr_t>(arena),
                        reinterpret_cast<uintptr_t>(arena) + sizeof(arena)};
Unit shared_units[sizeof(arena) / 2];
size_t arena_used = 0;
size_t shared_used = 0;
std::map<const char*, std::pair<void*, size_t>> variables;

bool same_block(const Moment& a) { return a.block == now.block; }
bool same_warp(const Moment& a) { return same_block(a) && a.thread / kWarp == now.thread / kWarp; }

bool ordered(const Moment& a, Readers who, bool in_shared) {
  if (a.block < earlier) return true;
  if (!same_block(a)) return in_shared;  // another block has its own
  if (a.epoch != now.epoch) return true;
  if (who == kOne && a.thread == now.thread) return true;
  return who != kMany && same_warp(a) && a.warp_epoch != now.warp_epoch;
}

Unit& global_unit(uintptr_t at) {
  const uintptr_t number = at >> kPageBits;
  const size_t slot = number % kRecent;
  if (recent_number[slot] != number || recent[slot] == nullptr) {
    auto& page = pages[number];
    if (page == nullptr) page = std::make_unique<Page>();
    recent[slot] = page.get();
    recent_number[slot] = number;
  }
  return recent[slot]->units[(at & ((uintptr_t(1) << kPageBits) - 1)) >> 2];
}

[[noreturn]] void race(const char* mine, const char* other, const Moment& then, const void* pc) {
  fail("race: %s what thread %u%s %s, with no barrier between them, in %s", mine, then.thread,
       same_block(then) ? "" : " of another block", other, source_of(pc).c_str());
}

// One access to one unit.
void follow(Unit& unit, bool in_shared, bool write, const void* pc) {
  // Several warps have read it since the last barrier, and what they read was in order.
  if (!write && unit.readers == kMany && same_block(unit.read) && unit.read.epoch == now.epoch) return;
  if (unit.is_written && !ordered(unit.written, kOne, in_shared))
    race(write ? "writes" : "reads", "writes", unit.written, pc);
  if (write) {
    if (unit.readers != kNobody && !ordered(unit.read, unit.readers, in_shared))
      race("writes", "reads", unit.read, pc);
    unit.written = now;
    unit.is_written = true;
    unit.readers = kNobody;
    return;
  }
  if (in_shared && !(unit.is_written && same_block(unit.written)))
    fail("reads shared memory that no thread has written, in %s", source_of(pc).c_str());
  const bool alone = unit.readers == kNobody || ordered(unit.read, unit.readers, in_shared) ||
                     (unit.readers == kOne && same_block(unit.read) && unit.read.thread == now.thread);
  unit.readers = alone ? kOne : (unit.readers != kMany && same_warp(unit.read) ? kWarpmates : kMany);
  unit.read = now;
}

void track(uintptr_t at, size_t size, bool write, const void* pc) {
  const bool in_shared = arena_range.has(at);
  const size_t unit = in_shared ? 2 : 4;
  if (size < unit) return;
  for (uintptr_t u = at / unit * unit; u < at + size; u += unit)
    follow(in_shared ? shared_units[(u - arena_range.begin) / unit] : global_unit(u), in_shared, write, pc);
}

bool poisoned(uintptr_t at, size_t size) {
  const auto marked = [](uintptr_t byte) {
    return reinterpret_cast<const char*>((byte >> 3) + shadow_offset)[0] != 0;
  };
  if (size <= 16 && !marked(at) && !marked(at + size - 1)) return false;
  return __asan_region_is_poisoned(reinterpret_cast<void*>(at), size) != nullptr;
}

// "4 bytes after 400 bytes of heap memory".
std::string describe_place(uintptr_t at) {
  for (const auto& [key, variable] : variables) {
    const auto begin = reinterpret_cast<uintptr_t>(variable.first);
    const uintptr_t end = begin + variable.second;
    if (at + kRedzone >= begin && at < end + kRedzone)
      return at < begin ? std::to_string(begin - at) + " bytes before a shared variable"
                        : std::to_string(at - end) + " bytes after a shared variable of " +
                              std::to_string(variable.second) + " bytes";
  }
  char name[100] = "";
  void* begin_at = nullptr;
  size_t size = 0;
  const char* kind = __asan_locate_address(reinterpret_cast<void*>(at), name, sizeof(name), &begin_at, &size);
  const auto begin = reinterpret_cast<uintptr_t>(begin_at);
  if (kind == nullptr || begin == 0) return "in memory that is not its own";
  const std::string where = at < begin ? std::to_string(begin - at) + " bytes before "
                            : at >= begin + size
                                ? std::to_string(at - begin - size) + " bytes after "
                                : std::to_string(at - begin) + " bytes into freed or unused ";
  return where + std::to_string(size) + " bytes of " + kind + " memory";
}

[[noreturn]] void out_of_bounds(uintptr_t at, size_t size, bool write, const void* pc) {
  fail("out of bounds: %s %zu bytes, %s, in %s", write ? "writes" : "reads", size, describe_place(at).c_str(),
       source_of(pc).c_str());
}

void access(uintptr_t at, size_t size, bool write, const void* pc) {
  if (shadow_offset == 0) {
    size_t scale = 0;
    __asan_get_shadow_mapping(&scale, &shadow_offset);
  }
  if (!running) {
    if (poisoned(at, size))
      __asan_report_error(const_cast<void*>(pc), __builtin_frame_address(0), __builtin_frame_address(0),
                          reinterpret_cast<void*>(at), write, size);
    return;
  }
  const char* verb = write ? "writes" : "reads";
  if (at < (1 << 16) || at >> 47 != 0)
    fail("out of bounds: %s at %p, in %s", verb, reinterpret_cast<void*>(at), source_of(pc).c_str());
  if (poisoned(at, size)) out_of_bounds(at, size, write, pc);
  if (stacks.has(at)) {
    if (!own_stack().has(at))
      fail("%s a local variable of another thread, in %s", verb, source_of(pc).c_str());
    return;
  }
  if (host_stack.has(at)) fail("%s a local variable of the host, in %s", verb, source_of(pc).c_str());
  for (const Range& range : host_only)
    if (range.has(at)) fail("%s memory of the host, in %s", verb, source_of(pc).c_str());
  track(at, size, write, pc);
}

// Of the instruction before `code`, as of a return address.
std::string symbolize(const void* code, const char* format) {
  char text[1000] = "";
  __sanitizer_symbolize_pc(const_cast<void*>(code), format, text, sizeof(text));
  return text;
}

}  // namespace

std::string name_of(const void* code) {
  std::string name = symbolize(static_cast<const char*>(code) + 1, "%f");
  const std::string hidden = "(anonymous namespace)::";
  for (size_t at; (at = name.find(hidden)) != std::string::npos;) name.erase(at, hidden.size());
  return name.substr(0, name.find('('));
}

std::string source_of(const void* code) {
  // AddressSanitizer's own reader of debug information knows no lines of functions that several files hold.
  Dl_info library{};
  dladdr(code, &library);
  char command[1000];
  std::snprintf(command, sizeof(command), "env -u LD_PRELOAD addr2line -s -e '%s' %#zx", library.dli_fname,
                reinterpret_cast<size_t>(code) - 1 - reinterpret_cast<size_t>(library.dli_fbase));
  char line[200] = "";
  if (FILE* output = popen(command, "r")) {
    if (std::fgets(line, sizeof(line), output) == nullptr) line[0] = '\0';
    pclose(output);
  }
  const std::string where = line;
  return where.substr(0, where.find_first_of(" \n"));
}

void begin_launch() {
  if (pages.size() > kMostPages) {
    pages.clear();
    std::fill_n(recent, kRecent, nullptr);
  }
  if (host_stack.begin == 0) {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t size = 0;
    pthread_getattr_np(pthread_self(), &attributes);  // reads a long file
    pthread_attr_getstack(&attributes, &begin, &size);
    pthread_attr_destroy(&attributes);
    host_stack = {reinterpret_cast<uintptr_t>(begin), reinterpret_cast<uintptr_t>(begin) + size};
  }
}

void begin_block() {
  variables.clear();
  shared_used = 0;
  arena_used = kRedzone;
  __asan_poison_memory_region(arena, sizeof(arena));
}

void* shared(const char* key, size_t size, size_t align) {
  const auto found = variables.find(key);
  if (found != variables.end()) return found->second.first;
  shared_used = (shared_used + align - 1) / align * align + size;
  if (shared_used > kMostShared) fail("the shared variables take more than %zu bytes", kMostShared);
  void* result = arena + arena_used;
  arena_used += (size + kRedzone - 1) / kRedzone * kRedzone + kRedzone;
  __asan_unpoison_memory_region(result, size);
  // Two kinds of garbage, so that what reads it differs between the two directions.
  std::memset(result, descending ? 0x7b : 0xff, size);
  variables[key] = {result, size};
  return result;
}

void forget_stacks() {
  __asan_unpoison_memory_region(reinterpret_cast<void*>(stacks.begin), stacks.end - stacks.begin);
}

}  // namespace emulator

// What compiled code calls before each access, and where it finds arithmetic to be wrong.

#define EMULATOR_ACCESS(name, size)                                 \
  extern "C" void __tsan_##name##read##size(uintptr_t at) {         \
    emulator::access(at, size, false, __builtin_return_address(0)); \
  }                                                                 \
  extern "C" void __tsan_##name##write##size(uintptr_t at) {        \
    emulator::access(at, size, true, __builtin_return_address(0));  \
  }
EMULATOR_ACCESS(, 1)
EMULATOR_ACCESS(, 2)
EMULATOR_ACCESS(, 4)
EMULATOR_ACCESS(, 8)
EMULATOR_ACCESS(, 16)
EMULATOR_ACCESS(unaligned_, 2)
EMULATOR_ACCESS(unaligned_, 4)
EMULATOR_ACCESS(unaligned_, 8)
EMULATOR_ACCESS(unaligned_, 16)
extern "C" void __tsan_read_range(uintptr_t at, size_t size) {
  emulator::access(at, size, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(uintptr_t at, size_t size) {
  emulator::access(at, size, true, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void**, void*) {}

// Of the host's code: reference counts and guards of static variables.
extern "C" int __tsan_atomic32_fetch_add(int* at, int value, int /*order*/) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
extern "C" char __tsan_atomic8_load(const char* at, int /*order*/) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}

namespace {
struct Found {  // each of the sanitizer's records begins so
  const char* file;
  uint32_t line;
  uint32_t column;
};
[[noreturn]] void wrong(const void* data, const char* what) {
  const auto* found = static_cast<const Found*>(data);
  emulator::fail_at({found->file, found->line}, "%s", what);
}
}  // namespace

#define EMULATOR_WRONG(name, what, ...) \
  extern "C" void __ubsan_handle_##name(void* data __VA_OPT__(, ) __VA_ARGS__) { wrong(data, what); }
EMULATOR_WRONG(type_mismatch_v1, "misaligned access", uintptr_t)
EMULATOR_WRONG(add_overflow, "signed overflow of a sum", uintptr_t, uintptr_t)
EMULATOR_WRONG(sub_overflow, "signed overflow of a difference", uintptr_t, uintptr_t)
EMULATOR_WRONG(mul_overflow, "signed overflow of a product", uintptr_t, uintptr_t)
EMULATOR_WRONG(negate_overflow, "signed overflow of a negation", uintptr_t)
EMULATOR_WRONG(divrem_overflow, "division by zero", uintptr_t, uintptr_t)
EMULATOR_WRONG(shift_out_of_bounds, "shift by too many bits", uintptr_t, uintptr_t)
EMULATOR_WRONG(out_of_bounds, "index beyond an array", uintptr_t)
