// The forward kernel, alone and with all steps fused.
#include "launch.cuh"

namespace cgc::CGC_ISA {
namespace {

CamPhase cam_phase_of(const Cam* views, int count, Arena& arena) {
  CamPhase phase{{views[0], views[count - 1]}, count, plan(views, count), nullptr};
  const Cam& call = views[0];
  if (phase.plan.splits > 1) {
    phase.partials = arena.take(count * call.batch * phase.plan.splits * call.positions * acc_bytes(call));
  }
  return phase;
}

ContrastPhase contrast_phase_of(const Contrast& call, const Scalar& loss, Arena& arena) {
  ContrastPhase phase{
      call,    0,      1 / call.temperature, loss, Objective::released, 1, call.positives, contrast_splits(call.batch),
      nullptr, nullptr};
  phase.largest = arena.take(call.batch * phase.splits * (call.float64 ? 8 : 4));
  phase.others = static_cast<double*>(arena.take(call.batch * phase.splits * 8));
  return phase;
}

Forward forward_of(const Cgc& call, const Scalar& loss, Arena& arena) {
  Forward forward{cam_phase_of(call.views, 2, arena),
                  {call.resample, table_of(call.resample)},
                  contrast_phase_of(call.contrast, loss, arena),
                  0};
  forward.contrast.consistency = call.consistency;
  forward.contrast.objective = call.resample.objective;
  forward.contrast.pixels = call.resample.size_h * call.resample.size_w;
  return forward;
}

Step cam(const CamPhase& phase) {
  const Cam& call = phase.views[0];
  return {cam_step, call.batch * phase.view_count * phase.plan.splits, shared_bytes(call)};
}

Step finish(const CamPhase& phase) {
  return {phase.plan.splits > 1 ? finish_step : 0u, phase.views[0].batch * phase.view_count, 0};
}

Step resample(const Resample& call) { return {resample_step, call.batch, shared_bytes(call)}; }

Step contrast(const Contrast& call, Objective objective) {
  return {objective == Objective::mse ? 0u : contrast_step, tiles(call.batch, tile_rows) * contrast_splits(call.batch),
          contrast_shared_bytes(call.float64 ? 8 : 4)};
}

Step loss(const Contrast&) { return {loss_step, 1, index_t(sizeof(double)) * block_warps}; }

auto forward_for(bool float64) { return float64 ? &forward_kernel<double> : &forward_kernel<float>; }

}  // namespace
}  // namespace cgc::CGC_ISA

using namespace cgc::CGC_ISA;

std::int64_t cgc_cuda_cam_workspace(const cgc::Cam* call) {
  Arena arena(nullptr);
  cam_phase_of(call, 1, arena);
  return arena.used();
}

std::int64_t cgc_cuda_contrast_workspace(const cgc::Contrast* call) {
  Arena arena(nullptr);
  contrast_phase_of(*call, {}, arena);
  return arena.used();
}

std::int64_t cgc_cuda_cgc_workspace(const cgc::Cgc* call) {
  Arena arena(nullptr);
  forward_of(*call, {}, arena);
  return arena.used();
}

int cgc_cuda_cam(const cgc::Cam* call, const cgc::Launch* launch) {
  Arena arena(launch->workspace);
  Forward forward{};
  forward.cam = cam_phase_of(call, 1, arena);
  return start_sequence(forward_for(is_float64(*call)), {cam(forward.cam), finish(forward.cam)}, *launch, forward);
}

int cgc_cuda_resample(const cgc::Resample* call, const cgc::Launch* launch) {
  Forward forward{};
  forward.resample = {*call, table_of(*call)};
  return start_sequence(forward_for(call->float64), {resample(*call)}, *launch, forward);
}

int cgc_cuda_contrast(const cgc::Contrast* call, const cgc::Scalar* scalar, const cgc::Launch* launch) {
  Arena arena(launch->workspace);
  Forward forward{};
  forward.contrast = contrast_phase_of(*call, *scalar, arena);
  return start_sequence(forward_for(call->float64), {contrast(*call, cgc::Objective::released), loss(*call)}, *launch,
                        forward);
}

int cgc_cuda_cgc(const cgc::Cgc* call, const cgc::Scalar* scalar, const cgc::Launch* launch) {
  Arena arena(launch->workspace);
  const Forward forward = forward_of(*call, *scalar, arena);
  return start_fused(forward_for(is_float64(call->views[0])),
                     {cam(forward.cam), resample(call->resample), contrast(call->contrast, call->resample.objective),
                      loss(call->contrast)},
                     *launch, forward);
}

const char* cgc_cuda_error(int code) { return error_name(code); }

int cgc_cuda_largest_side() { return largest_side; }
