// The two loops the floor is made of: read a buffer once, and write a buffer once with streaming stores.
// Built on demand by floor.py. OpenMP, so that the loops run on the thread pool PyTorch already has.
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace {

constexpr std::size_t kBlock = 512;  // bytes handled per iteration: eight 64-byte cache lines

typedef int32_t Line __attribute__((vector_size(64), may_alias));

inline void stream_line(char* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_set1_epi32(1));
#elif defined(__AVX__)
  for (int i = 0; i < 2; ++i) _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + i, _mm256_set1_epi32(1));
#elif defined(__SSE2__)
  for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, _mm_set1_epi32(1));
#else
  *reinterpret_cast<Line*>(to) = Line{} + 1;  // no portable streaming store: an ordinary one
#endif
}

}  // namespace

// Both expect a 64-byte aligned buffer and a size that is a multiple of 512 bytes.

extern "C" int32_t floor_read(const char* from, std::size_t bytes, int threads) {
  const std::ptrdiff_t blocks = static_cast<std::ptrdiff_t>(bytes / kBlock);
  int32_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    Line sums[8] = {};  // independent sums: the loop waits for memory, never for an addition
#pragma omp for schedule(static) nowait
    for (std::ptrdiff_t b = 0; b < blocks; ++b) {
      const Line* line = reinterpret_cast<const Line*>(from + b * kBlock);
      for (int i = 0; i < 8; ++i) sums[i] += line[i];
    }
    for (int i = 1; i < 8; ++i) sums[0] += sums[i];
    for (int lane = 0; lane < 16; ++lane) total += sums[0][lane];
  }
  return total;
}

extern "C" void floor_write(char* to, std::size_t bytes, int threads) {
  const std::ptrdiff_t blocks = static_cast<std::ptrdiff_t>(bytes / kBlock);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static) nowait
    for (std::ptrdiff_t b = 0; b < blocks; ++b)
      for (std::size_t i = 0; i < kBlock; i += 64) stream_line(to + b * kBlock + i);
#if defined(__SSE2__)
    _mm_sfence();  // streaming stores are weakly ordered: wait for them inside the timed region
#endif
  }
}
