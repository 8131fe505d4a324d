// The CPU kernels as their caller sees them: one table of functions per instruction set. Torch-free.
#pragma once

#include "../common/calls.h"

namespace cgc {

// How a kernel runs its loop: body(begin, end, context) over disjoint parts of [0, count).
using Body = void (*)(std::int64_t begin, std::int64_t end, void* context);
using ParallelFor = void (*)(std::int64_t count, std::int64_t grain, Body body, void* context);

struct Kernels {
  const char* name;
  void (*cam)(const Cam&, ParallelFor);
  void (*cam_backward)(const CamBackward&, ParallelFor);
  void (*resample)(const Resample&, ParallelFor);
  void (*resample_backward)(const ResampleBackward&, ParallelFor);
  void (*contrast)(const Contrast&, const Scalar& loss, ParallelFor);
  void (*contrast_backward)(const ContrastBackward&, ParallelFor);
  void (*cgc)(const Cgc&, const Scalar& loss, ParallelFor);
  void (*cgc_backward)(const CgcBackward&, ParallelFor);
};

namespace baseline {
const Kernels& kernels();
}
#if CGC_X86_DISPATCH
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
#endif

}  // namespace cgc
