#include "fiber.h"

#include <cstdint>
#include <cstring>

extern "C" {
// Null unless AddressSanitizer is loaded.
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, std::size_t bytes);
}

namespace simt {
namespace {

constexpr std::uint64_t canary = 0x5157a11ed5157a11;

const void* scheduler_stack;  // where the scheduler runs, as AddressSanitizer sees it
std::size_t scheduler_bytes;

void start_switch(void** fake_stack, const void* bottom, std::size_t bytes) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}

void finish_switch(void* fake_stack, const void** bottom, std::size_t* bytes) {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
}

}  // namespace

#ifndef SIMT_UCONTEXT

// swapcontext makes a system call each time; a fiber needs the callee-saved registers and the stack pointer only.
extern "C" void simt_switch(void** saved, void* loaded);
asm(R"(
.text
.hidden simt_switch
.global simt_switch
.type simt_switch, @function
simt_switch:
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
)");

namespace {
void* scheduler;
}

void Context::prepare(char* base, std::size_t size, void (*entry)()) {
  stack = base;
  bytes = size;
  fake_stack = nullptr;
  std::memcpy(stack, &canary, sizeof(canary));
  void** top = reinterpret_cast<void**>(stack + bytes);
  top -= 2;
  *--top = nullptr;  // no caller; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  pointer = top;
}

#define SIMT_TO_FIBER(fiber) simt_switch(&scheduler, (fiber).pointer)
#define SIMT_TO_SCHEDULER(fiber) simt_switch(&(fiber).pointer, scheduler)

#else

namespace {
ucontext_t scheduler;
}

void Context::prepare(char* base, std::size_t size, void (*entry)()) {
  stack = base;
  bytes = size;
  fake_stack = nullptr;
  std::memcpy(stack, &canary, sizeof(canary));
  getcontext(&machine);
  machine.uc_stack.ss_sp = stack;
  machine.uc_stack.ss_size = bytes;
  machine.uc_link = nullptr;
  makecontext(&machine, entry, 0);
}

#define SIMT_TO_FIBER(fiber) swapcontext(&scheduler, &(fiber).machine)
#define SIMT_TO_SCHEDULER(fiber) swapcontext(&(fiber).machine, &scheduler)

#endif

void Context::enter() {
  void* own = nullptr;
  start_switch(&own, stack, bytes);
  SIMT_TO_FIBER(*this);
  finish_switch(own, nullptr, nullptr);
}

void Context::leave(bool for_ever) {
  start_switch(for_ever ? nullptr : &fake_stack, scheduler_stack, scheduler_bytes);
  SIMT_TO_SCHEDULER(*this);
  finish_switch(fake_stack, &scheduler_stack, &scheduler_bytes);
}

void Context::entered() { finish_switch(nullptr, &scheduler_stack, &scheduler_bytes); }

bool Context::overflowed() const { return std::memcmp(stack, &canary, sizeof(canary)) != 0; }

void forget_stacks(const char* stacks, std::size_t size) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stacks, size);
}

}  // namespace simt
