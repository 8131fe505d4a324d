// The fields of a crop, integers of any type and stride.
#pragma once

#include "calls.h"
#include "platform.h"

namespace cgc::CGC_ISA {

template <class T>
CGC_HD inline index_t value_at(const void* values, index_t place) {
  return index_t(static_cast<const T*>(values)[place]);
}

// The integer of one sample; 1 or 0 of a bool.
CGC_HD inline index_t value_of(const Column& column, index_t sample) {
  const index_t place = sample * column.stride;
  switch (column.type) {
    case Integer::uint8:
      return value_at<std::uint8_t>(column.data, place);
    case Integer::int8:
      return value_at<std::int8_t>(column.data, place);
    case Integer::int16:
      return value_at<std::int16_t>(column.data, place);
    case Integer::int32:
      return value_at<std::int32_t>(column.data, place);
    case Integer::boolean:
      return value_at<std::uint8_t>(column.data, place) != 0;
    default:
      return value_at<std::int64_t>(column.data, place);
  }
}

}  // namespace cgc::CGC_ISA
