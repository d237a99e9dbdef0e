// Runs CUDA kernels on the CPU. Every thread of a block is a fibre with a stack of its own, which
// runs until it meets a barrier, a shuffle or a vote; lanes, warps and blocks run in a random
// order that a seed determines. Blocks run one after another, but those of a cooperative grid take
// turns: where all threads of one wait, the next goes on. Shared memory, outputs and scratch start
// as NaN (integers as -1), so that a missing barrier and an element that nobody wrote show in the
// result. A trap, undefined behaviour, memory that may not be touched, an __ldg of a byte beside a
// tensor, a barrier that not all threads reach, lanes that meet at different shuffles, and a loop
// without end stop the kernel with an exception.
//
// Products and sums are contracted as nvcc does, where the CPU can, and the device's own functions
// err as far as they are documented to.
//
// It cannot show: speed and the use of registers; what nvcc makes of the sources; races between
// blocks, and between the threads of a block where both ends lie between two of the places at which
// fibres stop; launch.h, streams, and the inline assembly of a store, all of which are replaced.
#include <cuda_runtime.h>

#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <map>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

Index3 threadIdx, blockIdx, gridDim;

// Saves the registers that a call preserves, leaves the stack pointer in *from, and goes on where
// the stack `to` was left.
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.hidden emulation_switch
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

namespace emulation {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / 32;
constexpr size_t kStackBytes = 256 << 10;

enum class State { kReady, kAtMeeting, kAtBarrier, kNapping, kDone };

struct Fibre {
  void* stack_pointer;
  State state;
};

// The lanes of one mask. While some still read what one meeting left, others may have come to the
// next one, but not beyond: two places suffice.
struct Meetings {
  unsigned arrived = 0;
  int place = 0;
  uint64_t bits[2][32] = {};
  int labels[2][32] = {};
};

// Of all blocks that have begun and not ended.
char* all_stacks;
Fibre all_fibres[kMaxThreads];
std::map<unsigned, Meetings> all_meetings[kMaxWarps];
// Of the running block.
char* stacks;
Fibre* fibres;
std::map<unsigned, Meetings>* meetings_of_warp;
void* scheduler;
int current = -1;  // the running fibre, none being -1
int threads_of_block;
const std::function<void()>* running_kernel;
std::string trap_reason;
std::mt19937 generator;
int64_t together_limit = kMaxThreads;

void suspend() { emulation_switch(&fibres[current].stack_pointer, scheduler); }

void run_fibre() {
  (*running_kernel)();
  fibres[current].state = State::kDone;
  suspend();
  std::abort();
}

void resume(int thread) {
  current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  emulation_switch(&scheduler, fibres[thread].stack_pointer);
  current = -1;
}

void start_fibre(int thread) {
  void** top = reinterpret_cast<void**>(stacks + kStackBytes * (thread + 1));
  // A return address, though nothing returns to it, leaves the stack aligned as after a call.
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&run_fibre);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fibres[thread] = {top, State::kReady};
}

int find_thread_locals(dl_phdr_info* object, size_t, void* block) {
  const auto own = reinterpret_cast<uintptr_t>(&find_thread_locals) - object->dlpi_addr;
  bool is_own = false;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const auto& segment = object->dlpi_phdr[i];
    is_own |= segment.p_type == PT_LOAD && own - segment.p_vaddr < segment.p_memsz;
  }
  for (int i = 0; is_own && i < object->dlpi_phnum; ++i)
    if (object->dlpi_phdr[i].p_type == PT_TLS)
      *static_cast<std::pair<void*, size_t>*>(block) = {object->dlpi_tls_data,
                                                        object->dlpi_phdr[i].p_memsz};
  return is_own;
}

struct Shared {
  char* begin;
  char* end;
};

Shared shared_memory() {
  // The memory exists from the first access on.
  static thread_local volatile char first_access;
  first_access = 0;
  std::pair<void*, size_t> block{};
  dl_iterate_phdr(&find_thread_locals, &block);
  if (block.first == nullptr) throw std::runtime_error("emulation: no shared memory");
  char* const begin = static_cast<char*>(block.first);
  return {begin, begin + block.second};
}

void run_warp(int warp) {
  // Mostly until all its lanes wait, but sometimes for a few steps, so that warps drift apart.
  int64_t rounds = generator() % 4 == 0 ? 1 + generator() % 3 : int64_t{1} << 40;
  int order[32];
  std::iota(order, order + 32, 32 * warp);
  bool ran = true;
  while (ran && rounds-- > 0) {
    ran = false;
    std::shuffle(order, order + 32, generator);
    for (const int thread : order) {
      if (thread >= threads_of_block || fibres[thread].state != State::kReady) continue;
      resume(thread);
      if (!trap_reason.empty()) return;
      ran = true;
    }
  }
}

int count_fibres(State state) {
  return static_cast<int>(std::count_if(fibres, fibres + threads_of_block,
                                        [&](const Fibre& f) { return f.state == state; }));
}

// Makes the block of that place among those that run at once the running one.
void choose_block(int place) {
  const int first_thread = place * threads_of_block;
  stacks = all_stacks + kStackBytes * first_thread;
  fibres = all_fibres + first_thread;
  meetings_of_warp = all_meetings + first_thread / 32;
}

void begin_block() {
  const Shared shared = shared_memory();
  std::fill(shared.begin, shared.end, '\xff');
  for (int warp = 0; warp * 32 < threads_of_block; ++warp) meetings_of_warp[warp].clear();
  for (int thread = 0; thread < threads_of_block; ++thread) start_fibre(thread);
}

// Returns whether the block has ended; otherwise, it waits for other blocks.
bool run_block() {
  const auto end = fibres + threads_of_block;
  for (auto fibre = fibres; fibre != end; ++fibre)
    if (fibre->state == State::kNapping) fibre->state = State::kReady;
  std::vector<int> warps((threads_of_block + 31) / 32);
  std::iota(warps.begin(), warps.end(), 0);
  for (;;) {
    std::shuffle(warps.begin(), warps.end(), generator);
    for (const int warp : warps) {
      run_warp(warp);
      if (!trap_reason.empty()) throw std::runtime_error("emulation: trap: " + trap_reason);
    }
    if (count_fibres(State::kDone) == threads_of_block) return true;
    if (count_fibres(State::kAtBarrier) == threads_of_block) {
      for (auto fibre = fibres; fibre != end; ++fibre) fibre->state = State::kReady;
    } else if (count_fibres(State::kReady) == 0) {
      if (count_fibres(State::kNapping) > 0) return false;
      throw std::runtime_error(
          "emulation: trap: a barrier or a shuffle that not all threads reach");
    }
  }
}

// All blocks take turns, in a random order.
void run_together(std::vector<unsigned> blocks) {
  std::vector<std::vector<char>> shared(blocks.size());  // of those that wait
  const auto ends = [&](unsigned block) {
    choose_block(static_cast<int>(block));
    blockIdx = {block, 0, 0};
    const Shared memory = shared_memory();
    if (shared[block].empty())
      begin_block();
    else
      std::copy(shared[block].begin(), shared[block].end(), memory.begin);
    if (run_block()) return true;
    shared[block].assign(memory.begin, memory.end);
    return false;
  };
  while (!blocks.empty()) {
    std::shuffle(blocks.begin(), blocks.end(), generator);
    blocks.erase(std::remove_if(blocks.begin(), blocks.end(), ends), blocks.end());
  }
}

struct sigaction outer_fault, outer_alarm;

// The grids of the tests take 2 seconds at most.
constexpr unsigned kMaxSeconds = 30;

void on_signal(int signal) {
  if (signal == SIGALRM) {
    if (current >= 0) trap("a kernel that does not end");
    alarm(1);
  } else {
    if (current >= 0) trap("an access to memory outside of the tensors");
    // Not of a kernel: it happens again, and then is whoever's it was.
    sigaction(SIGSEGV, &outer_fault, nullptr);
  }
}

// Makes faults and endless loops of a kernel traps. A trap does not return from the handler, hence
// SA_NODEFER.
class SignalGuard {
 public:
  SignalGuard() {
    struct sigaction handler = {};
    handler.sa_handler = &on_signal;
    handler.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &handler, &outer_fault);
    sigaction(SIGALRM, &handler, &outer_alarm);
    alarm(kMaxSeconds);
  }
  ~SignalGuard() {
    alarm(0);
    sigaction(SIGALRM, &outer_alarm, nullptr);
    sigaction(SIGSEGV, &outer_fault, nullptr);
  }
};

// Bytes on either side of every output and scratch tensor, and what they hold.
constexpr int64_t kGuardBytes = 4096;
constexpr unsigned char kGuard = 0xa5;

struct Allocation {
  unsigned char* guard;
  int64_t bytes;

  bool is_damaged() const {
    const auto is_other = [](unsigned char byte) { return byte != kGuard; };
    const unsigned char* const end = guard + kGuardBytes + bytes;
    return std::any_of(guard, guard + kGuardBytes, is_other) ||
        std::any_of(end, end + kGuardBytes, is_other);
  }
};
std::vector<Allocation> allocations;

// Memory that belongs to one tensor, of which kernels may read no byte beside it.
struct Guarded {
  uintptr_t end, tensor, tensor_end;
};
std::map<uintptr_t, Guarded> all_guarded;  // by where that memory begins

void guard_reads(const void* begin, int64_t bytes, const void* tensor, int64_t tensor_bytes) {
  const auto first = reinterpret_cast<uintptr_t>(begin);
  const auto at = reinterpret_cast<uintptr_t>(tensor);
  all_guarded[first] = {first + bytes, at, at + tensor_bytes};
}

}  // namespace

void check_read(const void* from, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(from);
  const auto after = all_guarded.upper_bound(at);
  if (after == all_guarded.begin()) return;
  const Guarded& memory = std::prev(after)->second;
  if (at < memory.end && (at < memory.tensor || at + bytes > memory.tensor_end))
    trap("a read beside a tensor");
}

int lane() { return current % 32; }

int64_t most_together() { return together_limit; }

void trap(const char* reason) {
  if (current < 0) throw std::runtime_error("emulation: " + std::string(reason));
  trap_reason = reason;
  suspend();
  std::abort();
}

const uint64_t* exchange(unsigned mask, uint64_t bits, int label) {
  const int own = lane();
  if (!(mask >> own & 1)) trap("a lane outside of its own mask");
  Meetings& meetings = meetings_of_warp[current / 32][mask];
  const int place = meetings.place;
  meetings.bits[place][own] = bits;
  meetings.labels[place][own] = label;
  meetings.arrived |= 1u << own;
  fibres[current].state = State::kAtMeeting;
  if (meetings.arrived == mask) {
    meetings.arrived = 0;
    meetings.place = 1 - place;
    for (int i = 0; i < 32; ++i)
      if (mask >> i & 1) fibres[current - own + i].state = State::kReady;
  }
  suspend();
  for (int i = 0; i < 32; ++i)
    if ((mask >> i & 1) && meetings.labels[place][i] != label)
      trap("lanes that meet at different shuffles");
  return meetings.bits[place];
}

void run_grid(int64_t blocks, int threads, bool together, const std::function<void()>& kernel) {
  if (blocks > 0x7fffffff || threads > kMaxThreads) trap("a grid too large to launch");
  if (together && (blocks * threads > kMaxThreads || threads % 32 != 0))
    trap("a grid too large to run at once");
  if (all_stacks == nullptr) {
    void* const memory = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    all_stacks = static_cast<char*>(memory);
  }
  running_kernel = &kernel;
  threads_of_block = threads;
  trap_reason.clear();
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), generator);
  gridDim = {static_cast<unsigned>(blocks), 1, 1};
  const SignalGuard guard;
  if (together) {
    run_together(order);
    return;
  }
  choose_block(0);
  for (const unsigned block : order) {
    blockIdx = {block, 0, 0};
    begin_block();
    if (!run_block()) throw std::runtime_error("emulation: trap: a block that waits for another");
  }
}

void* allocate_guarded(int64_t bytes) {
  // 512 bytes are what torch's allocator aligns to on a GPU.
  const int64_t whole = (bytes + 2 * kGuardBytes + 511) / 512 * 512;
  auto* const guard = static_cast<unsigned char*>(std::aligned_alloc(512, whole));
  if (guard == nullptr) throw std::bad_alloc();
  std::memset(guard, kGuard, whole);
  std::memset(guard + kGuardBytes, 0xff, bytes);
  allocations.push_back({guard, bytes});
  guard_reads(guard, whole, guard + kGuardBytes, bytes);
  return guard + kGuardBytes;
}

}  // namespace emulation

void __syncthreads() {
  emulation::fibres[emulation::current].state = emulation::State::kAtBarrier;
  emulation::suspend();
}

// What a thread does that waits for another block.
void __nanosleep(unsigned) {
  emulation::fibres[emulation::current].state = emulation::State::kNapping;
  emulation::suspend();
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulation_seed(unsigned seed) { emulation::generator.seed(seed); }

EXPORT void emulation_refuse_beyond(int64_t blocks) { emulation::together_limit = blocks; }

// Bytes of all outputs and scratch since the last call of emulation_free.
EXPORT int64_t emulation_allocated() {
  int64_t bytes = 0;
  for (const auto& allocation : emulation::allocations) bytes += allocation.bytes;
  return bytes;
}

// Frees all outputs and scratch since the last call; returns how many were written beside.
EXPORT int emulation_free() {
  int damaged = 0;
  for (const auto& allocation : emulation::allocations) {
    damaged += allocation.is_damaged();
    emulation::all_guarded.erase(reinterpret_cast<uintptr_t>(allocation.guard));
    std::free(allocation.guard);
  }
  emulation::allocations.clear();
  return damaged;
}

// The models of the device's functions, for their own test.
EXPORT float emulation_exp2_approx(float x) { return emulation::exp2_approx(x); }
EXPORT float emulation_fast_exp(float x) { return __expf(x); }
EXPORT float emulation_exp(float x) { return cpfast::exp(x); }
EXPORT float emulation_log(float x) { return cpfast::log(x); }
EXPORT float emulation_log1p(float x) { return cpfast::log1p(x); }

// Of a tensor of the tests.
EXPORT void emulation_guard(const void* begin, int64_t bytes, const void* tensor,
                            int64_t tensor_bytes) {
  emulation::guard_reads(begin, bytes, tensor, tensor_bytes);
}

EXPORT void emulation_unguard(const void* begin) {
  emulation::all_guarded.erase(reinterpret_cast<uintptr_t>(begin));
}

// What the compiler calls where it finds undefined behaviour. With these in place of the
// sanitizer's own library, it costs the test that caused it, not the process.
namespace {

struct Place {
  const char* file;
  uint32_t line, column;
};

[[noreturn]] void trap_at(const char* what, const Place& place) {
  const std::string file = place.file;
  emulation::trap((std::string(what) + ", " + file.substr(file.rfind('/') + 1) + ":" +
                   std::to_string(place.line))
                      .c_str());
}

}  // namespace

#define ON_UNDEFINED(name, what) \
  extern "C" void __ubsan_handle_##name##_abort(Place* place) { trap_at(what, *place); }

ON_UNDEFINED(type_mismatch_v1, "a misaligned or null pointer")
ON_UNDEFINED(out_of_bounds, "an index out of bounds")
ON_UNDEFINED(shift_out_of_bounds, "a shift out of bounds")
ON_UNDEFINED(add_overflow, "an overflow")
ON_UNDEFINED(sub_overflow, "an overflow")
ON_UNDEFINED(mul_overflow, "an overflow")
ON_UNDEFINED(negate_overflow, "an overflow")
ON_UNDEFINED(divrem_overflow, "a division by zero")
