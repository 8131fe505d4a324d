// What g++ -fsanitize=thread calls at each load and store. ThreadSanitizer itself is not linked: these take its place.
#include "internal.h"

#define SIMT_HOOK(name, bytes, write)                                                    \
  extern "C" void __tsan_##name(void* address) {                                         \
    simt::access(address, bytes, write, simt::Path::plain, __builtin_return_address(0)); \
  }
#define SIMT_HOOKS(bytes)                        \
  SIMT_HOOK(read##bytes, bytes, false)           \
  SIMT_HOOK(write##bytes, bytes, true)           \
  SIMT_HOOK(unaligned_read##bytes, bytes, false) \
  SIMT_HOOK(unaligned_write##bytes, bytes, true) \
  SIMT_HOOK(volatile_read##bytes, bytes, false)  \
  SIMT_HOOK(volatile_write##bytes, bytes, true)

SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

extern "C" {
void __tsan_read_range(void* address, std::size_t bytes) {
  simt::access(address, bytes, false, simt::Path::plain, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  simt::access(address, bytes, true, simt::Path::plain, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
