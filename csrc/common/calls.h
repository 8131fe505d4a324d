// One call of each kernel as plain structures, the same for every device. Torch-free.
#pragma once

#include <cstdint>

namespace cgc {

enum class Type { float32, float64, bfloat16, float16 };
enum class Weighting { pooled, mean, elementwise };
enum class Objective { released, paper, mse };  // in the order of OBJECTIVES in cgc_kernels/options.py
constexpr std::int64_t objectives = 3;
enum class Integer { uint8, int8, int16, int32, int64, boolean };

// Whether it has negatives, and so rows and keys for stage contrast; if not it is a mean over the positives. Static, as
// is what follows: code of two instruction sets must not share a symbol.
static constexpr bool contrasts(Objective objective) { return objective != Objective::mse; }

// One number where the kernel runs.
struct Scalar {
  void* data;
  bool float64;  // float32 otherwise
};

// One integer a sample, [B].
struct Column {
  const void* data;
  std::int64_t stride;  // in elements
  Integer type;
};

enum CropField { crop_top, crop_left, crop_height, crop_width, crop_flip, crop_fields };

// "acc" below is float64 where the features are float64, float32 otherwise; P = H * W.
struct Cam {
  std::int64_t batch, channels, positions;
  Type features_type, gradients_type;
  Weighting weighting;
  bool channels_last;     // of features and of 4-D gradients: [B, P, C] in memory rather than [B, C, P]
  const void* features;   // [B, C, P]
  const void* gradients;  // [B, C, P], or [B, C] for Weighting::pooled
  void* heatmaps;         // acc [B, P]
  void* weights;          // acc [B, C], written for Weighting::mean
};

// Weighting::mean does not occur: its weights come back as pooled gradients of type acc.
struct CamBackward {
  Cam forward;
  const void* grad_heatmaps;  // acc [B, P]
  void* grad_features;        // as features, null if not wanted
  void* grad_gradients;       // as gradients, null if not wanted
};

struct Resample {
  std::int64_t batch, height, width, size_h, size_w;
  double eps;
  Objective objective;
  bool float64;               // type of heatmaps, rows and keys; float32 otherwise
  const void* heatmaps;       // [B, P]
  const void* aug_heatmaps;   // [B, P]
  Column crops[crop_fields];  // [B] each; data is null for warps
  const double* inverses;     // [B, 3, 3], or null
  void* rows;                 // [B, P], unused if the objective does not contrast them
  void* keys;                 // [B, P], unused if the objective does not contrast them
  double* positives;          // [B]
  void* state;                // [B, 3, P], what the backward starts from; float64 also where wide_state
};

// Whether the state is float64: of the mse objective, too, whose 1 - positive cancels.
static constexpr bool wide_state(const Resample& call) { return call.float64 || call.objective == Objective::mse; }

struct ResampleBackward {
  Resample forward;
  const void* grad_rows;         // [B, P], unused if the objective does not contrast them
  const void* grad_keys;         // [B, P], unused if the objective does not contrast them
  const double* grad_positives;  // [B]
  void* grad_heatmaps;           // [B, P]
  void* grad_aug_heatmaps;       // [B, P]
};

// Of `count` samples from `first` on, against all: each rank of a group has its own, and one process has them all.
struct Contrast {
  std::int64_t batch, length, first, count;
  double temperature;
  bool float64;             // type of rows and keys; float32 otherwise
  const void* rows;         // [B, N]
  const void* keys;         // [B, N]
  const double* positives;  // [B]
  double* row_losses;       // [count]; for the backward [B]
};

// Of the mean of all row losses.
struct ContrastBackward {
  Contrast forward;
  Scalar grad_loss;
  void* grad_rows;         // [count, N]
  void* grad_keys;         // [count, N]
  double* grad_positives;  // [count]
};

struct Cgc {
  Cam views[2];
  Resample resample;
  Contrast contrast;
  double consistency;
};

struct CgcBackward {
  CamBackward views[2];  // grad_heatmaps unused: it never leaves the kernel
  ResampleBackward resample;
  ContrastBackward contrast;
  double consistency;
};

}  // namespace cgc
