// Stage contrast, backward, by itself.
#include "contrast_gradient.cuh"

namespace cgc::CGC_ISA {

// Half of the blocks take the gradients of the rows, half those of the keys, whose softmaxes are the columns'.
template <class Acc, int slices>
__global__ void __launch_bounds__(block_threads, 1) contrast_backward(const __grid_constant__ ContrastBackward call) {
  SIMT_DYN_SHARED(Acc, memory);
  const ContrastTiles<Acc> tiles(memory);
  const Contrast& forward = call.forward;
  const int batch = int(forward.batch), length = int(forward.length);
  const bool keys = blockIdx.x >= gridDim.x / 2;
  const int mine = int(keys ? blockIdx.x - gridDim.x / 2 : blockIdx.x) * tile_rows, row = int(forward.first) + mine;
  const int rows = minimum(tile_rows, int(forward.count) - mine);
  const ContrastSides sides{keys ? forward.keys : forward.rows, keys ? forward.rows : forward.keys, batch, length};
  simt::release_successor();
  Acc grads[slices][4] = {}, others[2] = {};
  row_gradients<Acc, slices>(call, sides, !keys, keys, row, tiles, grads, others);
  Acc* to = static_cast<Acc*>(keys ? call.grad_keys : call.grad_rows);
  each_gradient(grads, length, [&](int r, int k, Acc grad) {
    if (r < rows) simt::gst(to + index_t(mine + r) * length + k, grad);
  });
  if (!keys) {
    __syncthreads();
    Acc* sums = tiles.weights;
    sum_others(others, tiles.rows, sums);
    each(rows, [&](int r) { simt::gst(call.grad_positives + mine + r, -double(sums[r])); });
  }
  simt::wait_for_predecessor();  // which has written nothing of what is read here
}

int launch_contrast_backward(const ContrastBackward& call, Stream& stream) {
  return with_type(call.forward.float64, [&](auto acc) {
    using Acc = decltype(acc);
    const index_t length = call.forward.length;
    const auto kernel = length <= slice       ? &contrast_backward<Acc, 1>
                        : length <= 4 * slice ? &contrast_backward<Acc, 4>
                                              : &contrast_backward<Acc, 16>;
    return stream.start(kernel, 2 * unsigned(row_tiles(call.forward.count)),
                        ContrastTiles<Acc>::elements * index_t(sizeof(Acc)), call);
  });
}

}  // namespace cgc::CGC_ISA
