// Operators of stage contrast: rows, keys, positives -> loss.
#pragma once

#include <tuple>

#include "tensors.h"

namespace cgc {

template <class Device>
struct ContrastOperators {
  static std::tuple<Tensor, Tensor> contrast(const Tensor& rows, const Tensor& keys, const Tensor& positives,
                                             double temperature) {
    const Device device(rows);
    Contrast call = describe(device, rows, keys, positives, temperature);
    Tensor row_losses = make(rows, {call.batch}, ScalarType::Double), loss = make(rows, {}, rows.scalar_type());
    call.row_losses = doubles(row_losses);
    device.run(call, scalar(device, loss, "loss"));
    return {loss, row_losses};
  }

  static std::tuple<Tensor, Tensor, Tensor> contrast_backward(const Tensor& grad_loss, const Tensor& rows,
                                                              const Tensor& keys, const Tensor& positives,
                                                              const Tensor& row_losses, double temperature) {
    const Device device(rows);
    ContrastBackward call{};
    call.forward = describe(device, rows, keys, positives, temperature);
    check(device, row_losses, "row_losses", {call.forward.batch}, ScalarType::Double);
    call.forward.row_losses = doubles(row_losses);
    call.grad_loss = scalar(device, grad_loss, "grad_loss");
    Tensor grad_rows = make_like(rows), grad_keys = make_like(keys), grad_positives = make_like(positives);
    call.grad_rows = writable(grad_rows);
    call.grad_keys = writable(grad_keys);
    call.grad_positives = doubles(grad_positives);
    device.run(call);
    return {grad_rows, grad_keys, grad_positives};
  }

 private:
  // The call without its outputs.
  static Contrast describe(const Device& device, const Tensor& rows, const Tensor& keys, const Tensor& positives,
                           double temperature) {
    STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) > 0, "rows must be [B, N] with B > 0, got ", described(rows));
    const ScalarType type = accumulator_of(rows, "rows");
    Contrast call{};
    call.batch = rows.size(0);
    call.length = rows.size(1);
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
