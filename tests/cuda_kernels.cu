// All CUDA kernels in one library, for the emulator.
#include "cam.cu"
#include "cgc.cu"
#include "cgc_backward.cu"
#include "contrast.cu"
#include "resample.cu"
#include "resample_backward.cu"
