// What the launchers ask of the device, or of the emulator's.
#pragma once

#include "platform.cuh"

namespace cgc::CGC_ISA {

constexpr index_t shared_limit = 96 * 1024;  // what every device since compute capability 8.0 gives a block

#ifdef __CUDACC__

// Blocks of a kernel that the current device holds at once; the error if it cannot be asked.
struct Residency {
  int blocks = 0;
  bool cooperative = false;  // the device takes cooperative grids, and this one leaves it half full or fuller
  cudaError_t error = cudaSuccess;
};

template <class Kernel>
Residency residency(Kernel kernel, index_t shared_bytes) {
  Residency found;
  int device = 0, processors = 0, threads = 0, cooperative = 0, blocks = 0;
  const auto attempt = [&](cudaError_t error) {
    if (found.error == cudaSuccess) found.error = error;
  };
  attempt(cudaGetDevice(&device));
  attempt(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  attempt(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, device));
  attempt(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  if (shared_bytes > 48 * 1024) {  // more must be asked for; always for the same, since other threads launch too
    attempt(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_limit)));
  }
  attempt(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, block_threads, std::size_t(shared_bytes)));
  found.blocks = blocks * processors;
  found.cooperative = cooperative != 0 && 2 * blocks * block_threads >= threads;
  if (found.error != cudaSuccess) cudaGetLastError();  // it is returned; the next caller must not meet it
  return found;
}

inline const char* error_name(int code) { return cudaGetErrorString(cudaError_t(code)); }

constexpr int too_large = cudaErrorCooperativeLaunchTooLarge, not_supported = cudaErrorNotSupported;
inline void forget_error() { cudaGetLastError(); }

#else

struct Residency {
  int blocks = simt::config.resident_blocks;
  bool cooperative = simt::config.cooperative;
  int error = 0;
};

template <class Kernel>
Residency residency(Kernel, index_t) {
  return {};
}

constexpr int too_large = simt::cooperative_too_large, not_supported = simt::cooperative_not_supported;

inline const char* error_name(int code) {
  return code == too_large       ? "the device does not hold so many blocks at once"
         : code == not_supported ? "the device takes no cooperative launches"
                                 : "the emulator refused the launch, or it did not end";
}

inline void forget_error() {}

#endif

}  // namespace cgc::CGC_ISA
