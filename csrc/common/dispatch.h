// From the types named in a call to types of C++.
#pragma once

#include "calls.h"
#include "platform.h"

namespace cgc::CGC_ISA {

// Calls visit with a value of the features', the gradients' and the accumulator's type, where the device has its own
// types for the narrow ones; other pairs were refused before. Of accumulator float:
template <class BFloat16, class Float16, class F>
auto with_narrow_types(const Cam& call, F&& visit) {
  const bool wide = call.gradients_type == Type::float32;
  switch (call.features_type) {
    case Type::bfloat16:
      return wide ? visit(BFloat16{}, float{}, float{}) : visit(BFloat16{}, BFloat16{}, float{});
    case Type::float16:
      return wide ? visit(Float16{}, float{}, float{}) : visit(Float16{}, Float16{}, float{});
    default:
      return visit(float{}, float{}, float{});
  }
}

// Of any:
template <class BFloat16, class Float16, class F>
auto with_types(const Cam& call, F&& visit) {
  if (call.features_type == Type::float64) return visit(double{}, double{}, double{});
  return with_narrow_types<BFloat16, Float16>(call, visit);
}

template <class F>
auto with_type(bool float64, F&& visit) {
  return float64 ? visit(double{}) : visit(float{});
}

}  // namespace cgc::CGC_ISA
