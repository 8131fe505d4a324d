// Launchers plan the work of a call, a function of its shapes alone, and start its kernels.
#pragma once

#include <initializer_list>

#include "cgc.cuh"
#include "device.cuh"
#include "launch.h"

namespace cgc::CGC_ISA {

inline bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

inline int bytes_of(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }
inline int acc_bytes(const Cam& call) { return call.features_type == Type::float64 ? 8 : 4; }

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
inline CamPlan plan(const Cam* views, int count) {
  const Cam& call = views[0];
  const int item = bytes_of(call.features_type);
  const int streamed = item + (call.weighting == Weighting::pooled ? 0 : bytes_of(call.gradients_type));
  const index_t least = (call.channels + most_channels - 1) / most_channels;
  const index_t most = maximum(call.channels * streamed / 1024, least);
  const index_t splits = clamp(index_t(1024) / (count * call.batch), least, most);
  const index_t share = round_up((call.channels + splits - 1) / splits, index_t(64));
  const int vector = 16 / item;
  bool vectorised = true;
  for (int i = 0; i < count; ++i) {  // the views may differ in their memory format
    const Cam& view = views[i];
    const index_t whole = view.channels_last ? view.channels : view.channels * view.positions;
    vectorised = vectorised && whole % vector == 0 && aligned(view.features) &&
                 (view.weighting == Weighting::pooled || aligned(view.gradients));
  }
  return {int((call.channels + share - 1) / share), int(share), vectorised};
}

inline int table_of(const Resample& call) {
  const int height = int(call.height), width = int(call.width);
  const int room = int(shared_limit / 8) - resample_doubles(height, width);
  return maximum(minimum(room, 2048), pixel_doubles(height, width));
}

inline index_t shared_bytes(const Resample& call) {
  return 8 * index_t(resample_doubles(int(call.height), int(call.width)) + table_of(call));
}

inline index_t shared_bytes(const Cam& call) {
  return cam_shared_bytes(int(call.positions), 16 / bytes_of(call.features_type), acc_bytes(call));
}

// What a launch may run: how many blocks it has work for, and the shared memory that it takes.
struct Step {
  unsigned bit;
  index_t items, shared;
};

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

inline bool is_float64(const Cam& call) { return call.features_type == Type::float64; }

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
  if (error == 0) return 0;
  forget_error();  // it is returned or answered by the sequence; the next caller must not meet it
  const bool refused = error == too_large || error == not_supported;
  if (!refused || launch.form == Form::cooperative) return error;
  return start_sequence(kernel, steps, launch, call);
}

}  // namespace cgc::CGC_ISA
