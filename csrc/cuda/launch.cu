// Launchers: they plan the work of a call, a function of its shapes alone, and start its kernels.
#include <initializer_list>

#include "cgc.cuh"
#include "device.cuh"
#include "launch.h"

namespace cgc::CGC_ISA {
namespace {

constexpr index_t shared_limit = 96 * 1024;  // what every device since compute capability 8.0 gives a block

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

int bytes_of(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }
int acc_bytes(const Cam& call) { return call.features_type == Type::float64 ? 8 : 4; }

// Hands out the workspace.
class Arena {
 public:
  explicit Arena(void* begin) : begin_(static_cast<char*>(begin)) {}
  void* take(index_t bytes) {
    void* const part = begin_ == nullptr ? nullptr : begin_ + used_;
    used_ += round_up(bytes, index_t(16));
    return part;
  }
  index_t used() const { return used_; }

 private:
  char* begin_;
  index_t used_ = 0;
};

// Splits of the channels: enough for a large device, but each streams 1024 bytes a position or more, beside which the
// traffic of its sums is small.
CamPlan plan(const Cam* views, int count) {
  const Cam& call = views[0];
  const int item = bytes_of(call.features_type);
  const int streamed = item + (call.weighting == Weighting::pooled ? 0 : bytes_of(call.gradients_type));
  const index_t wanted = index_t(1024) / (count * call.batch), most = call.channels * streamed / 1024;
  const index_t splits = clamp(wanted, index_t(1), maximum(most, index_t(1)));
  const index_t share = round_up((call.channels + splits - 1) / splits, index_t(64));
  const int vector = 16 / item;
  bool vectorised = (call.channels_last ? call.channels : call.channels * call.positions) % vector == 0;
  for (int view = 0; view < count; ++view) {
    vectorised = vectorised && aligned(views[view].features);
    vectorised = vectorised && (call.weighting == Weighting::pooled || aligned(views[view].gradients));
  }
  return {int((call.channels + share - 1) / share), int(share), vectorised};
}

CamPhase cam_phase_of(const Cam* views, int count, Arena& arena) {
  CamPhase phase{{views[0], views[count - 1]}, count, plan(views, count), nullptr};
  const Cam& call = views[0];
  if (phase.plan.splits > 1) {
    phase.partials = arena.take(count * call.batch * phase.plan.splits * call.positions * acc_bytes(call));
  }
  return phase;
}

CamBackwardPhase cam_backward_phase_of(const CamBackward* views, int count) {
  const Cam forwards[2] = {views[0].forward, views[count - 1].forward};
  CamBackwardPhase phase{{views[0], views[count - 1]}, count, plan(forwards, count)};
  for (const CamBackward& view : phase.views) {
    phase.plan.vectorised = phase.plan.vectorised && aligned(view.grad_features) && aligned(view.grad_gradients);
  }
  return phase;
}

ContrastPhase contrast_phase_of(const Contrast& call, const Scalar& loss, Arena& arena) {
  ContrastPhase phase{call,    0,      loss, Objective::released, 1, call.positives, contrast_splits(call.batch),
                      nullptr, nullptr};
  phase.largest = arena.take(call.batch * phase.splits * (call.float64 ? 8 : 4));
  phase.others = static_cast<double*>(arena.take(call.batch * phase.splits * 8));
  return phase;
}

int table_of(const Resample& call) {
  const int height = int(call.height), width = int(call.width);
  const int room = int(shared_limit / 8) - resample_doubles(height, width);
  return maximum(minimum(room, 2048), pixel_doubles(height, width));
}

index_t shared_bytes(const Resample& call) {
  return 8 * index_t(resample_doubles(int(call.height), int(call.width)) + table_of(call));
}

index_t shared_bytes(const Cam& call) {
  return cam_shared_bytes(int(call.positions), 16 / bytes_of(call.features_type), acc_bytes(call));
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

Backward backward_of(const CgcBackward& given, Arena& arena) {
  CgcBackward call = given;
  const Cam& cam = call.views[0].forward;
  const index_t bytes = cam.batch * cam.positions * acc_bytes(cam);
  call.views[0].grad_heatmaps = call.resample.grad_heatmaps = arena.take(bytes);
  call.views[1].grad_heatmaps = call.resample.grad_aug_heatmaps = arena.take(bytes);
  return {call.contrast,
          {call.resample, table_of(call.resample.forward), call.consistency, call.contrast.grad_loss},
          cam_backward_phase_of(call.views, 2),
          0};
}

// ---- Steps: how many blocks have work in each, and what shared memory it takes

struct Step {
  unsigned bit;
  index_t items, shared;
};

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

// ---- Starting kernels

template <class Call>
int start(void (*kernel)(Call), const Step& step, const Launch& launch, Call call) {
  const Residency device = residency(kernel, step.shared);
  if (device.error != 0) return device.error;
  const index_t blocks = launch.blocks > 0 ? launch.blocks : device.blocks;
  call.steps = step.bit;
  return SIMT_LAUNCH(kernel, unsigned(clamp(blocks, index_t(1), step.items)), block_threads, std::size_t(step.shared),
                     launch.stream, call);
}

// One launch for each step, in order, until one fails.
template <class Call>
int start_sequence(void (*kernel)(Call), std::initializer_list<Step> steps, const Launch& launch, const Call& call) {
  for (const Step& step : steps) {
    const int error = step.bit == 0 ? 0 : start(kernel, step, launch, call);
    if (error != 0) return error;
  }
  return 0;
}

// One cooperative launch for all of the steps where the form asks for it and the device can; a sequence otherwise.
template <class Call>
int start_fused(void (*kernel)(Call), std::initializer_list<Step> steps, const Launch& launch, Call call) {
  Step all{0, 0, 0};
  for (const Step& step : steps) {
    if (step.bit == 0) continue;
    all = {all.bit | step.bit, maximum(all.items, step.items), maximum(all.shared, step.shared)};
  }
  const Residency device = residency(kernel, all.shared);
  const bool fits = device.error == 0 && device.cooperative;
  if (launch.form == Form::sequence || (launch.form == Form::automatic && !fits)) {
    return start_sequence(kernel, steps, launch, call);
  }
  if (device.error != 0) return device.error;
  const index_t blocks = launch.blocks > 0 ? launch.blocks : device.blocks;
  call.steps = all.bit;
  const int error = SIMT_LAUNCH_COOP(kernel, unsigned(clamp(blocks, index_t(1), all.items)), block_threads,
                                     std::size_t(all.shared), launch.stream, call);
  const bool refused = error == too_large || error == not_supported;
  if (!refused || launch.form == Form::cooperative) return error;
  forget_error();
  return start_sequence(kernel, steps, launch, call);
}

auto forward_for(bool float64) { return float64 ? &forward_kernel<double> : &forward_kernel<float>; }
auto backward_for(bool float64) { return float64 ? &backward_kernel<double> : &backward_kernel<float>; }
bool is_float64(const Cam& call) { return call.features_type == Type::float64; }

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

std::int64_t cgc_cuda_cgc_backward_workspace(const cgc::CgcBackward* call) {
  Arena arena(nullptr);
  backward_of(*call, arena);
  return arena.used();
}

int cgc_cuda_cam(const cgc::Cam* call, const cgc::Launch* launch) {
  Arena arena(launch->workspace);
  Forward forward{};
  forward.cam = cam_phase_of(call, 1, arena);
  return start_sequence(forward_for(is_float64(*call)), {cam(forward.cam), finish(forward.cam)}, *launch, forward);
}

int cgc_cuda_cam_backward(const cgc::CamBackward* call, const cgc::Launch* launch) {
  Backward backward{};
  backward.cam = cam_backward_phase_of(call, 1);
  return start_sequence(backward_for(is_float64(call->forward)), {cam_back(backward.cam)}, *launch, backward);
}

int cgc_cuda_resample(const cgc::Resample* call, const cgc::Launch* launch) {
  Forward forward{};
  forward.resample = {*call, table_of(*call)};
  return start_sequence(forward_for(call->float64), {resample(*call)}, *launch, forward);
}

int cgc_cuda_resample_backward(const cgc::ResampleBackward* call, const cgc::Launch* launch) {
  Backward backward{};
  backward.resample = {*call, table_of(call->forward), 0, {}};
  return start_sequence(backward_for(call->forward.float64), {resample_back(call->forward)}, *launch, backward);
}

int cgc_cuda_contrast(const cgc::Contrast* call, const cgc::Scalar* scalar, const cgc::Launch* launch) {
  Arena arena(launch->workspace);
  Forward forward{};
  forward.contrast = contrast_phase_of(*call, *scalar, arena);
  return start_sequence(forward_for(call->float64), {contrast(*call, cgc::Objective::released), loss(*call)}, *launch,
                        forward);
}

int cgc_cuda_contrast_backward(const cgc::ContrastBackward* call, const cgc::Launch* launch) {
  Backward backward{};
  backward.contrast = *call;
  const Step step = contrast_back(call->forward, cgc::Objective::released);
  return start_sequence(backward_for(call->forward.float64), {step}, *launch, backward);
}

int cgc_cuda_cgc(const cgc::Cgc* call, const cgc::Scalar* scalar, const cgc::Launch* launch) {
  Arena arena(launch->workspace);
  const Forward forward = forward_of(*call, *scalar, arena);
  return start_fused(forward_for(is_float64(call->views[0])),
                     {cam(forward.cam), finish(forward.cam), resample(call->resample),
                      contrast(call->contrast, call->resample.objective), loss(call->contrast)},
                     *launch, forward);
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

const char* cgc_cuda_error(int code) { return error_name(code); }

int cgc_cuda_largest_side() { return largest_side; }
