// The CPU's side of the operators: which instruction set, whose threads, and their registration.
#include <cstdlib>
#include <cstring>
#include <string>

#include "../common/operators.h"
#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cgc {
namespace {

#if CGC_X86_DISPATCH
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The widest set the processor has; CGC_CPU_ISA=baseline|avx2 asks for less, so that tests run every path on one
// machine.
const Kernels& choose() {
#if CGC_X86_DISPATCH
  const char* wish = std::getenv("CGC_CPU_ISA");
  const bool any = wish == nullptr || *wish == '\0';
  if (has_avx512() && (any || std::strcmp(wish, "avx512") == 0)) return avx512::kernels();
  if (has_avx2() && (any || std::strcmp(wish, "baseline") != 0)) return avx2::kernels();
#endif
  return baseline::kernels();
}

const Kernels& chosen() {
  static const Kernels& table = choose();
  return table;
}

void parallel_for(Index count, Index grain, Body body, void* context) {
  torch::stable::parallel_for(0, count, grain, [=](Index begin, Index end) { body(begin, end, context); });
}

std::string instruction_set() { return chosen().name; }

class Cpu {
 public:
  static constexpr const char* name = "CPU";

  explicit Cpu(const Tensor&) {}

  static bool holds(const Tensor& tensor) { return tensor.is_cpu(); }

  static void check_sizes(Index, Index, Index, Index) {}

  static void check_rows(Index, Index) {}

  // Asks for huge pages: first touching fresh memory a page at a time costs more than computing what is written there.
  static void prepare(Tensor& gradient) {
#if defined(__linux__)
    constexpr std::uintptr_t huge = std::uintptr_t(2) << 20;
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(gradient.mutable_data_ptr());
    const std::uintptr_t last = first + std::uintptr_t(gradient.numel()) * gradient.element_size();
    const std::uintptr_t begin = (first + huge - 1) / huge * huge, end = last / huge * huge;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  }

  static void run(const Cam& call) { chosen().cam(call, &parallel_for); }
  static void run(const CamBackward& call) { chosen().cam_backward(call, &parallel_for); }
  static void run(const Resample& call) { chosen().resample(call, &parallel_for); }
  static void run(const ResampleBackward& call) { chosen().resample_backward(call, &parallel_for); }
  static void run(const Contrast& call, const Scalar& loss) { chosen().contrast(call, loss, &parallel_for); }
  static void run(const ContrastBackward& call) { chosen().contrast_backward(call, &parallel_for); }
  static void run(const Cgc& call, const Scalar& loss) { chosen().cgc(call, loss, &parallel_for); }
  static void run(const CgcBackward& call) { chosen().cgc_backward(call, &parallel_for); }
};

}  // namespace
}  // namespace cgc

STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, CPU, m) { cgc::implement<cgc::Cpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&cgc::instruction_set));
}
