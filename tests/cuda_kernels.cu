// All CUDA kernels in one library, for the emulator.
#include "backward.cu"
#include "forward.cu"
