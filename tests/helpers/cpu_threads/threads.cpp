// The threads of a thread block as contexts of the host, which take turns: the next lane of the warp, and now and then
// one of another warp, so that a barrier that is missing shows.
#include "cuda.h"

namespace cpu {

Thread* thread;
Index block, grid;
bool late;
int smem_bytes;

constexpr int kMostThreads = 1024;
constexpr size_t kStackBytes = 1 << 17;
constexpr int kLongTurns = 64;  // one turn in so many goes to another warp

struct Fiber : Thread {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;
  bool done = false;
};

Fiber fibers[kMostThreads];
Warp warps[kMostThreads / 32];
int n_threads, at_barrier;
unsigned barrier_round;
void* host;

// Marsaglia's xorshift: random enough to choose turns by, and much faster than what std has.
struct Random {
  uint32_t state;
  uint32_t operator()() {
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
  }
} choose;

void const* params;
unsigned blocks_begun = 0;
constexpr int kMostReadable = 4096;
char const* readable[kMostReadable][2];  // begin and end of what copies may read
int n_readable;
char const* added_to[2];  // begin and end of what reductions may add to

// Saves the registers of the caller and goes on where another context did the same (System V ABI, x86-64).
extern "C" void switch_context(void** saved, void* to);
asm(R"(
switch_context:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

void fail(char const* why) {
  fprintf(stderr, "block %u, thread %u: %s\n", block.x, thread->index.x, why);
  abort();
}

void check_source(void const* source, int bytes) {
  char const* const begin = static_cast<char const*>(source);
  if (reinterpret_cast<uintptr_t>(begin) % bytes) fail("cp.async: a source that is not aligned");
  for (int i = 0; i < n_readable; ++i) {
    if (begin >= readable[i][0] && begin + bytes <= readable[i][1]) return;
  }
  fail("cp.async: a source outside of the tensors");
}

void check_target(void const* target, int bytes) {
  char const* const begin = static_cast<char const*>(target);
  if (begin < added_to[0] || begin + bytes > added_to[1]) fail("red: a target outside of the sums");
}

void yield() {
  int const n_warps = n_threads / 32;
  int warp = thread->index.x / 32, lane = thread->index.x % 32;
  if (choose() % kLongTurns == 0) {
    warp = choose() % n_warps;
    lane = choose() % 32;
  }
  for (int i = 0; i < 2 * n_threads; ++i) {
    lane = (lane + 1) % 32;
    if (i % 32 == 31) warp = (warp + 1) % n_warps;
    Fiber& next = fibers[32 * warp + lane];
    if (next.done || &next == thread) continue;
    Fiber* const from = static_cast<Fiber*>(thread);
    thread = &next;
    return switch_context(&from->stack_pointer, next.stack_pointer);
  }
}

void wait_for_all() {
  unsigned const round = barrier_round;
  if (++at_barrier == n_threads) {
    at_barrier = 0;
    ++barrier_round;
  }
  while (barrier_round == round) yield();
}

}  // namespace cpu

alignas(1024) unsigned char memory[1 << 18] asm("s_memory");

extern "C" void kernel_on_cpu(void const* params);

static void run_thread() {
  kernel_on_cpu(cpu::params);
  cpu::Fiber* const mine = static_cast<cpu::Fiber*>(cpu::thread);
  mine->done = true;
  bool ended = true;
  for (int i = 0; i < cpu::n_threads; ++i) ended = ended && cpu::fibers[i].done;
  if (!ended) cpu::yield();
  cpu::switch_context(&mine->stack_pointer, cpu::host);
}

static void start(cpu::Fiber& fiber, unsigned index) {
  fiber.index = {index, 0, 0};
  fiber.done = false;
  fiber.open.clear();
  fiber.groups.clear();
  if (fiber.stack == nullptr) fiber.stack = static_cast<unsigned char*>(aligned_alloc(64, cpu::kStackBytes));
  void** top = reinterpret_cast<void**>(fiber.stack + cpu::kStackBytes - 64);
  *--top = nullptr;  // where a call would have come from: the stack is aligned as after one
  *--top = reinterpret_cast<void*>(run_thread);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

// Whether a byte from there on is another one than before: all of them equal the next one, and the last one 0xff.
static bool wrote_past(size_t first) {
  size_t const last = sizeof memory - 1;
  return memory[last] != 0xff || memcmp(memory + first, memory + first + 1, last - first) != 0;
}

// ranges: {address, bytes} of what copies may read. shape: {grid.x, grid.y, threads, shared memory in bytes}.
// ranges: address and bytes of what reductions may add to, then of each array that copies may read.
extern "C" void run_on_cpu(void const* params, uint64_t const* ranges, int n_ranges, int const* shape, int late) {
  cpu::params = params;
  cpu::late = late;
  cpu::n_readable = n_ranges - 1;
  if (cpu::n_readable > cpu::kMostReadable) abort();
  for (int i = 0; i < n_ranges; ++i) {
    char const** const range = i == 0 ? cpu::added_to : cpu::readable[i - 1];
    range[0] = reinterpret_cast<char const*>(ranges[2 * i]);
    range[1] = range[0] + ranges[2 * i + 1];
  }
  cpu::grid = {static_cast<unsigned>(shape[0]), static_cast<unsigned>(shape[1]), 1};
  cpu::n_threads = shape[2];
  cpu::smem_bytes = shape[3];
  cpu::choose.state = 0x9e3779b9u * (2 * shape[0] + 1);  // never 0
  cpu::grid = {static_cast<unsigned>(shape[0]), static_cast<unsigned>(shape[1]), 1};
  memset(memory, 0xff, sizeof memory);
  for (int item = 0; item < shape[0] * shape[1]; ++item) {
    cpu::block = {static_cast<unsigned>(item % shape[0]), static_cast<unsigned>(item / shape[0]), 0};
    memset(memory, 0xff, cpu::smem_bytes);
    cpu::at_barrier = 0;
    ++cpu::blocks_begun;
    for (int i = 0; i < cpu::n_threads; ++i) start(cpu::fibers[i], i);
    for (cpu::Warp& warp : cpu::warps) warp.arrived = 0;
    cpu::thread = &cpu::fibers[cpu::choose() % cpu::n_threads];
    cpu::switch_context(&cpu::host, static_cast<cpu::Fiber*>(cpu::thread)->stack_pointer);
    if (wrote_past(cpu::smem_bytes)) cpu::fail("wrote past its shared memory");
  }
}
