// Running loops in parallel and memory for their workspaces.
#pragma once

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

// Uninitialised memory, aligned to a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(index_t count)
      : data_(static_cast<T*>(::operator new(sizeof(T) * std::size_t(count), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace cgc::CGC_ISA
