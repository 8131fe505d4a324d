// The backward kernel, alone and with all steps fused.
#include "launch.cuh"

namespace cgc::CGC_ISA {
namespace {

CamBackwardPhase cam_backward_phase_of(const CamBackward* views, int count) {
  const Cam forwards[2] = {views[0].forward, views[count - 1].forward};
  CamBackwardPhase phase{{views[0], views[count - 1]}, count, plan(forwards, count)};
  for (const CamBackward& view : phase.views) {
    phase.plan.vectorised = phase.plan.vectorised && aligned(view.grad_features) && aligned(view.grad_gradients);
  }
  return phase;
}

Backward backward_of(const CgcBackward& given, Arena& arena) {
  CgcBackward call = given;
  const Cam& cam = call.views[0].forward;
  const index_t bytes = cam.batch * cam.positions * acc_bytes(cam);
  call.views[0].grad_heatmaps = call.resample.grad_heatmaps = arena.take(bytes);
  call.views[1].grad_heatmaps = call.resample.grad_aug_heatmaps = arena.take(bytes);
  return {call.contrast,
          {call.resample, table_of(call.resample.forward), mse_share(1, call.resample.forward),
           -call.consistency / double(cam.batch), call.contrast.grad_loss},
          cam_backward_phase_of(call.views, 2),
          0};
}

Step contrast_back(const Contrast& call, Objective objective) {
  return {objective == Objective::mse ? 0u : contrast_back_step,
          2 * tiles(call.batch, tile_rows) * tiles(call.length, tile_depth),
          contrast_shared_bytes(call.float64 ? 8 : 4)};
}

Step resample_back(const Resample& call) { return {resample_back_step, call.batch, shared_bytes(call)}; }

Step cam_back(const CamBackwardPhase& phase) {
  const Cam& call = phase.views[0].forward;
  return {cam_back_step, call.batch * phase.view_count * phase.plan.splits, shared_bytes(call)};
}

auto backward_for(bool float64) { return float64 ? &backward_kernel<double> : &backward_kernel<float>; }

}  // namespace
}  // namespace cgc::CGC_ISA

using namespace cgc::CGC_ISA;

std::int64_t cgc_cuda_cgc_backward_workspace(const cgc::CgcBackward* call) {
  Arena arena(nullptr);
  backward_of(*call, arena);
  return arena.used();
}

int cgc_cuda_cam_backward(const cgc::CamBackward* call, const cgc::Launch* launch) {
  Backward backward{};
  backward.cam = cam_backward_phase_of(call, 1);
  return start_sequence(backward_for(is_float64(call->forward)), {cam_back(backward.cam)}, *launch, backward);
}

int cgc_cuda_resample_backward(const cgc::ResampleBackward* call, const cgc::Launch* launch) {
  Backward backward{};
  backward.resample = {*call, table_of(call->forward), 0, 0, {}};
  return start_sequence(backward_for(call->forward.float64), {resample_back(call->forward)}, *launch, backward);
}

int cgc_cuda_contrast_backward(const cgc::ContrastBackward* call, const cgc::Launch* launch) {
  Backward backward{};
  backward.contrast = *call;
  const Step step = contrast_back(call->forward, cgc::Objective::released);
  return start_sequence(backward_for(call->forward.float64), {step}, *launch, backward);
}

int cgc_cuda_cgc_backward(const cgc::CgcBackward* call, const cgc::Launch* launch) {
  Arena arena(launch->workspace);
  const Backward backward = backward_of(*call, arena);
  const cgc::Resample& forward = call->resample.forward;
  return start_fused(
      backward_for(is_float64(call->views[0].forward)),
      {contrast_back(call->contrast.forward, forward.objective), resample_back(forward), cam_back(backward.cam)},
      *launch, backward);
}
