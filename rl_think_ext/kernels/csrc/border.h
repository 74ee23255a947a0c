// What both halves of the border to Python, CPU and CUDA, make of the integers that they are handed.
#pragma once

#include <cstdint>

#include "api.h"

namespace rl_think {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline Grid grid(int dtype, Address base, int64_t inner, int64_t outer_stride, int64_t inner_stride) {
  return {at<void>(base), static_cast<Dtype>(dtype), inner, outer_stride, inner_stride};
}

inline Selection selection(int64_t num_rows, Address listed, int64_t num_listed, Address mask) {
  return {num_rows, at<const int64_t>(listed), num_listed, at<const uint8_t>(mask)};
}

}  // namespace rl_think
