// Fibers: stacks that are switched by hand. AddressSanitizer, where it is loaded, is told of each switch.
#pragma once

#include <cstddef>

// Other processors do with the C library's switch, and so does SIMT_UCONTEXT, for tests.
#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif

#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

class Context {
 public:
  // Prepares to call `entry`, which never returns, on a stack of its own.
  void prepare(char* stack, std::size_t bytes, void (*entry)());
  // Runs the fiber until it leaves; called by the scheduler.
  void enter();
  // Back to the scheduler; called in the fiber.
  void leave(bool for_ever);
  // To be called first in `entry`.
  static void entered();
  // Whether the fiber has written below its stack.
  bool overflowed() const;

 private:
#ifdef SIMT_UCONTEXT
  ucontext_t machine;
#else
  void* pointer;
#endif
  char* stack;
  std::size_t bytes;
  void* fake_stack;
};

// Memory that no longer belongs to fibers that were abandoned half-way.
void forget_stacks(const char* stacks, std::size_t bytes);

}  // namespace simt
