// Non-temporal stores for gradients too large for the caches: a plain store would first read the line it overwrites.
#pragma once

#include <cstring>

#include "executor.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cgc::CGC_ISA {

// Outputs smaller than this stay in the caches, where the optimiser's next read finds them.
constexpr index_t stream_threshold_bytes = index_t(4) << 20;

constexpr index_t page_bytes = 4096;

#if defined(__AVX512F__)
using Line = __m512i;
inline void stream_line(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<Line*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
using Line = __m256i;
inline void stream_line(char* to, const char* from) {
  _mm256_stream_si256(reinterpret_cast<Line*>(to), _mm256_loadu_si256(reinterpret_cast<const Line*>(from)));
}
#elif defined(__SSE2__)
using Line = __m128i;
inline void stream_line(char* to, const char* from) {
  _mm_stream_si128(reinterpret_cast<Line*>(to), _mm_loadu_si128(reinterpret_cast<const Line*>(from)));
}
#endif

// Copies past the caches where the processor can, plainly elsewhere. A store whose page has to be looked up holds up
// all that follow, a prefetch does not: the pages after the next are prefetched.
inline void stream_copy(void* destination, const void* source, index_t bytes) {
  char* to = static_cast<char*>(destination);
  const char* from = static_cast<const char*>(source);
#if defined(__SSE2__)
  for (index_t page = 0; page < bytes; page += page_bytes) __builtin_prefetch(to + 2 * page_bytes + page);
  const index_t misaligned = index_t(reinterpret_cast<std::uintptr_t>(to) % sizeof(Line));
  const index_t head = minimum(bytes, misaligned == 0 ? index_t(0) : index_t(sizeof(Line)) - misaligned);
  std::memcpy(to, from, std::size_t(head));
  index_t done = head;
  for (; done + index_t(sizeof(Line)) <= bytes; done += sizeof(Line)) stream_line(to + done, from + done);
  std::memcpy(to + done, from + done, std::size_t(bytes - done));
#else
  std::memcpy(to, from, std::size_t(bytes));
#endif
}

// Orders streamed stores before whatever tells another thread that they are done.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Writes a gradient block by block, past the caches where it is large.
template <class T>
class Writer {
 public:
  Writer(void* gradient, index_t total, index_t block)
      : gradient_(static_cast<T*>(gradient)),
        streams_(total * index_t(sizeof(T)) >= stream_threshold_bytes),
        staged_(wanted() ? block : 0) {}

  bool wanted() const { return gradient_ != nullptr; }

  // Where the block from `offset` on is made: in place if it neither streams nor lacks room behind it, which another
  // thread may have written.
  T* begin(index_t offset, bool room) const { return room && !streams_ ? gradient_ + offset : staged_.get(); }

  void commit(const T* block, index_t offset, index_t count) const {
    if (streams_) {
      stream_copy(gradient_ + offset, block, count * index_t(sizeof(T)));
    } else if (block == staged_) {
      std::memcpy(gradient_ + offset, block, std::size_t(count) * sizeof(T));
    }
  }

 private:
  T* gradient_;
  bool streams_;
  Buffer<T> staged_;
};

}  // namespace cgc::CGC_ISA
