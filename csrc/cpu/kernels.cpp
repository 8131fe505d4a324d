// Compiled once per instruction set with -DCGC_ISA=<baseline|avx2|avx512> and the matching -march.
#include "kernels.h"

#include "../common/dispatch.h"
#include "../common/loss.h"
#include "cgc.h"

#define CGC_QUOTE(x) #x
#define CGC_NAME(x) CGC_QUOTE(x)

namespace cgc::CGC_ISA {
namespace {

void run_cam(const Cam& call, ParallelFor parallel_for) {
  with_types<bfloat16, float16>(
      call, [&](auto a, auto g, auto acc) { cam<decltype(a), decltype(g), decltype(acc)>(call, parallel_for); });
}

void run_cam_backward(const CamBackward& call, ParallelFor parallel_for) {
  with_types<bfloat16, float16>(call.forward, [&](auto a, auto g, auto acc) {
    cam_backward<decltype(a), decltype(g), decltype(acc)>(call, parallel_for);
  });
}

void run_resample(const Resample& call, ParallelFor parallel_for) {
  with_type(call.float64, [&](auto t) { resample<decltype(t)>(call, parallel_for); });
}

void run_resample_backward(const ResampleBackward& call, ParallelFor parallel_for) {
  with_type(call.forward.float64, [&](auto t) { resample_backward<decltype(t)>(call, parallel_for); });
}

void run_contrast(const Contrast& call, const Scalar& loss, ParallelFor parallel_for) {
  with_type(call.float64, [&](auto t) { assign(loss, contrast<decltype(t)>(call, parallel_for)); });
}

void run_contrast_backward(const ContrastBackward& call, ParallelFor parallel_for) {
  with_type(call.forward.float64, [&](auto t) { contrast_backward<decltype(t)>(call, parallel_for); });
}

void run_cgc(const Cgc& call, const Scalar& loss, ParallelFor parallel_for) {
  with_types<bfloat16, float16>(call.views[0], [&](auto a, auto g, auto acc) {
    assign(loss, cgc<decltype(a), decltype(g), decltype(acc)>(call, parallel_for));
  });
}

void run_cgc_backward(const CgcBackward& call, ParallelFor parallel_for) {
  with_types<bfloat16, float16>(call.views[0].forward, [&](auto a, auto g, auto acc) {
    cgc_backward<decltype(a), decltype(g), decltype(acc)>(call, parallel_for);
  });
}

}  // namespace

const Kernels& kernels() {
  // Constant-initialised: no guard variable, no weak symbol.
  static const Kernels table{CGC_NAME(CGC_ISA),      &run_cam,      &run_cam_backward,      &run_resample,
                             &run_resample_backward, &run_contrast, &run_contrast_backward, &run_cgc,
                             &run_cgc_backward};
  return table;
}

}  // namespace cgc::CGC_ISA
