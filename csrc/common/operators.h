// The operators, the same for every device: tensors to plain structures, outputs and gradients, one run of a kernel; a
// file a stage in operators/. Schemas, fake kernels and autograd are in cgc_kernels/ops; what the Python side cannot
// have checked is checked here.
#pragma once

#include <torch/csrc/stable/library.h>

#include "operators/cgc.h"

namespace cgc {

// Registers all of them, inside STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, <key>, m). A Device has
//   name                                          as messages spell it
//   Device(tensor)                                the tensor's device, the current one while the object lives
//   holds(tensor)                                 whether it lies there
//   check_sizes(batch, channels, height, width)   refuses features or maps that the kernels do not take
//   check_rows(batch, length)                     refuses rows that they do not take
//   prepare(gradient)                             before a large gradient is written
//   run(call), run(call, loss)                    runs a call's kernel
template <class Device, class Library>
void implement(Library& m) {
  m.impl("cam", TORCH_BOX(&CamOperators<Device>::cam));
  m.impl("cam_backward", TORCH_BOX(&CamOperators<Device>::cam_backward));
  m.impl("resample", TORCH_BOX(&ResampleOperators<Device>::resample));
  m.impl("resample_backward", TORCH_BOX(&ResampleOperators<Device>::resample_backward));
  m.impl("contrast", TORCH_BOX(&ContrastOperators<Device>::contrast));
  m.impl("contrast_backward", TORCH_BOX(&ContrastOperators<Device>::contrast_backward));
  m.impl("cgc", TORCH_BOX(&CgcOperators<Device>::cgc));
  m.impl("cgc_backward", TORCH_BOX(&CgcOperators<Device>::cgc_backward));
}

}  // namespace cgc
