// The three stages fused into one cooperative kernel each way. A kernel runs the steps that its call names, with a
// barrier of the grid between them: several in a cooperative launch; one by one, in order, where such a grid does not
// fit.
#pragma once

#include "cam.cuh"
#include "contrast.cuh"
#include "resample.cuh"

namespace cgc::CGC_ISA {

enum ForwardSteps : unsigned { cam_step = 1, finish_step = 2, resample_step = 4, contrast_step = 8, loss_step = 16 };

struct Forward {
  CamPhase cam;
  ResamplePhase resample;
  ContrastPhase contrast;
  unsigned steps;
};

enum BackwardSteps : unsigned { contrast_back_step = 1, resample_back_step = 2, cam_back_step = 4 };

struct Backward {
  ContrastBackward contrast;
  ResampleBackwardPhase resample;
  CamBackwardPhase cam;
  unsigned steps;
};

// Runs `work` if `steps` holds the step, and lets the grid meet if another one follows.
template <class F>
__device__ __forceinline__ void run_step(unsigned steps, unsigned step, F&& work) {
  if ((steps & step) == 0) return;
  work();
  if (steps >= 2 * step) cooperative_groups::this_grid().sync();
}

// Four blocks a multiprocessor: half of its threads, which is what streaming needs.
template <class Acc>
__global__ void __launch_bounds__(block_threads, 4) forward_kernel(const __grid_constant__ Forward call) {
  run_step(call.steps, cam_step, [&] { cam_phase<Acc>(call.cam); });
  run_step(call.steps, finish_step, [&] { finish_phase<Acc>(call.cam); });
  run_step(call.steps, resample_step, [&] { resample_phase<Acc>(call.resample, call.cam); });
  run_step(call.steps, contrast_step, [&] { contrast_phase<Acc>(call.contrast); });
  run_step(call.steps, loss_step, [&] { loss_phase<Acc>(call.contrast); });
}

template <class Acc>
__global__ void __launch_bounds__(block_threads, 4) backward_kernel(const __grid_constant__ Backward call) {
  run_step(call.steps, contrast_back_step, [&] { contrast_backward_phase<Acc>(call.contrast); });
  run_step(call.steps, resample_back_step, [&] { resample_backward_phase<Acc>(call.resample); });
  run_step(call.steps, cam_back_step, [&] { cam_backward_phase<Acc>(call.cam); });
}

}  // namespace cgc::CGC_ISA
