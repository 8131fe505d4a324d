// Running loops in parallel and memory for their workspaces.
#pragma once

#include <cstdlib>
#include <new>

#include "../common/platform.h"
#include "kernels.h"

namespace cgc::CGC_ISA {

// Runs body(begin, end) over disjoint parts of [0, count) that cover it.
template <class F>
void run(ParallelFor parallel_for, index_t count, index_t grain, F&& body) {
  parallel_for(
      count, grain, [](std::int64_t begin, std::int64_t end, void* f) { (*static_cast<F*>(f))(begin, end); }, &body);
}

// Uninitialised memory, aligned to a cache line; none for a count of 0. By malloc and an offset: the C library serves
// small aligned requests several times slower than plain ones.
template <class T>
class Buffer {
 public:
  explicit Buffer(index_t count) {
    if (count == 0) return;
    memory_ = static_cast<char*>(std::malloc(sizeof(T) * std::size_t(count) + line));
    if (memory_ == nullptr) throw std::bad_alloc();
    data_ = reinterpret_cast<T*>(memory_ + (line - reinterpret_cast<std::uintptr_t>(memory_) % line));
  }
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  operator T*() const { return data_; }

 private:
  static constexpr std::size_t line = 64;
  char* memory_ = nullptr;
  T* data_ = nullptr;
};

// One Buffer taken in parts.
template <class T>
class Parts {
 public:
  explicit Parts(index_t count) : buffer_(count), next_(buffer_) {}
  T* take(index_t count) {
    T* part = next_;
    next_ += count;
    return part;
  }

 private:
  Buffer<T> buffer_;
  T* next_;
};

}  // namespace cgc::CGC_ISA
