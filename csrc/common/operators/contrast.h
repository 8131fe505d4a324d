// Operators of stage contrast: rows, keys, positives -> loss, of all samples or of `count` from `first` on.
#pragma once

#include <tuple>

#include "tensors.h"

namespace cgc {

template <class Device>
struct ContrastOperators {
  static std::tuple<Tensor, Tensor> contrast(const Tensor& rows, const Tensor& keys, const Tensor& positives,
                                             Index first, Index count, double temperature) {
    const Device device(rows);
    Contrast call = describe(device, rows, keys, positives, first, count, temperature);
    Tensor row_losses = make(rows, {count}, ScalarType::Double), loss = make(rows, {}, rows.scalar_type());
    call.row_losses = doubles(row_losses);
    device.run(call, scalar(device, loss, "loss"));
    return {loss, row_losses};
  }

  static std::tuple<Tensor, Tensor, Tensor> contrast_backward(const Tensor& grad_loss, const Tensor& rows,
                                                              const Tensor& keys, const Tensor& positives,
                                                              const Tensor& row_losses, Index first, Index count,
                                                              double temperature) {
    const Device device(rows);
    ContrastBackward call{};
    call.forward = describe(device, rows, keys, positives, first, count, temperature);
    check(device, row_losses, "row_losses", {call.forward.batch}, ScalarType::Double);
    call.forward.row_losses = doubles(row_losses);
    call.grad_loss = scalar(device, grad_loss, "grad_loss");
    Tensor grad_rows = make(rows, {count, call.forward.length}, rows.scalar_type()),
           grad_keys = make(rows, {count, call.forward.length}, rows.scalar_type()),
           grad_positives = make(rows, {count}, ScalarType::Double);
    call.grad_rows = writable(grad_rows);
    call.grad_keys = writable(grad_keys);
    call.grad_positives = doubles(grad_positives);
    device.run(call);
    return {grad_rows, grad_keys, grad_positives};
  }

 private:
  // The call without its outputs.
  static Contrast describe(const Device& device, const Tensor& rows, const Tensor& keys, const Tensor& positives,
                           Index first, Index count, double temperature) {
    STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) > 0, "rows must be [B, N] with B > 0, got ", described(rows));
    const ScalarType type = accumulator_of(rows, "rows");
    Contrast call{};
    call.batch = rows.size(0);
    call.length = rows.size(1);
    STD_TORCH_CHECK(first >= 0 && first < call.batch, "first must be at least 0 and less than B = ", call.batch,
                    ", got ", first);
    STD_TORCH_CHECK(count > 0 && count <= call.batch - first,
                    "count must be at least 1 and at most B - first = ", call.batch - first, ", got ", count);
    call.first = first;
    call.count = count;
    call.temperature = temperature;
    call.float64 = type == ScalarType::Double;
    device.check_rows(call.batch, call.length);
    check(device, rows, "rows", {call.batch, call.length}, type);
    check(device, keys, "keys", {call.batch, call.length}, type);
    check(device, positives, "positives", {call.batch}, ScalarType::Double);
    call.rows = rows.const_data_ptr();
    call.keys = keys.const_data_ptr();
    call.positives = doubles(positives);
    return call;
  }
};

}  // namespace cgc
