// What the operators share: checks of their inputs, their outputs, and the pointers that go into a call. A check's
// message names the tensor, what it must be and what it is.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <string>

#include "../calls.h"

namespace cgc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Index = std::int64_t;
using Shape = std::initializer_list<Index>;

constexpr Index largest_int = (Index(1) << 31) - 1;

// ---- What messages say of a tensor

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    default:
      return torch::headeronly::toString(type);
  }
}

template <class Numbers>
std::string listed(const Numbers& numbers) {
  std::ostringstream text;
  const char* separator = "[";
  for (const Index number : numbers) text << separator << number, separator = ", ";
  text << (numbers.size() == 0 ? "[]" : "]");
  return text.str();
}

inline std::string described(const Tensor& tensor) {
  std::ostringstream text;
  text << name_of(tensor.scalar_type()) << " " << listed(tensor.sizes()) << " with strides " << listed(tensor.strides())
       << " on ";
  if (tensor.is_cpu()) {
    text << "the CPU";
  } else if (tensor.is_cuda()) {
    text << "cuda:" << tensor.get_device_index();
  } else {
    text << "another device";
  }
  return text.str();
}

// ---- Checks

inline bool has_shape(const Tensor& tensor, Shape shape) {
  bool same = tensor.dim() == Index(shape.size());
  Index dimension = 0;
  for (const Index size : shape) same = same && tensor.size(dimension++) == size;
  return same;
}

template <class Device>
void check(const Device& device, const Tensor& tensor, const char* name, Shape shape, ScalarType type) {
  STD_TORCH_CHECK(
      has_shape(tensor, shape) && tensor.scalar_type() == type && tensor.is_contiguous() && device.holds(tensor), name,
      " must be a contiguous ", Device::name, " tensor, ", name_of(type), " ", listed(shape), ", got ",
      described(tensor));
}

inline Type type_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::float32;
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Half:
      return Type::float16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16, got ", described(tensor));
  }
  return Type::float32;
}

// Of maps and rows.
inline ScalarType accumulator_of(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, name, " must be float32 or float64, got ",
                  described(tensor));
  return type;
}

// As torch sees it: the stride of a dimension of length 1 means nothing.
inline bool is_channels_last(const Tensor& tensor) {
  Index expected = 1;
  for (const Index dimension : {1, 3, 2, 0}) {
    if (tensor.size(dimension) != 1 && tensor.stride(dimension) != expected) return false;
    expected *= tensor.size(dimension);
  }
  return true;
}

// ---- Outputs

// The shim's own function: calling the operator by its name takes twice as long.
inline Tensor make(const Tensor& like, const Index* sizes, Index dimensions, ScalarType type) {
  std::int32_t dtype = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(type));
  std::int32_t layout = aoti_torch_layout_strided(), device, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_aten_new_empty(like.get(), sizes, dimensions, &dtype, &layout, &device, index, nullptr, &made));
  return Tensor(made);
}

inline Tensor make(const Tensor& like, Shape shape, ScalarType type) {
  return make(like, shape.begin(), Index(shape.size()), type);
}

// An uninitialised tensor of the same shape, strides and dtype.
inline Tensor make_like(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  Index expected = 1;
  for (Index dimension = tensor.dim() - 1; dimension >= 0; --dimension) {
    if (strides[dimension] != expected) return torch::stable::empty_like(tensor);
    expected *= sizes[dimension];
  }
  return make(tensor, sizes.data(), tensor.dim(), tensor.scalar_type());
}

// A gradient for `tensor`; empty where none is asked for.
template <class Device>
Tensor wanted(const Device& device, const Tensor& tensor, bool needed) {
  if (!needed) return make(tensor, {0}, tensor.scalar_type());
  Tensor gradient = make_like(tensor);
  device.prepare(gradient);
  return gradient;
}

// ---- Pointers

inline void* writable(const Tensor& tensor) { return tensor.numel() == 0 ? nullptr : tensor.mutable_data_ptr(); }

inline double* doubles(const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); }

// A number that the kernels read or write where they run.
template <class Device>
Scalar scalar(const Device& device, const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(
      device.holds(tensor) && tensor.numel() == 1 && (type == ScalarType::Float || type == ScalarType::Double), name,
      " must be one float32 or float64 number on the ", Device::name, ", got ", described(tensor));
  return {tensor.mutable_data_ptr(), type == ScalarType::Double};
}

}  // namespace cgc
