// The types of XLA's custom calls: float32 arrays and a list of integers that describes the windows.
#pragma once

#include "common.h"

namespace nas {

using Array = ffi::Buffer<ffi::F32>;
using Out = ffi::Result<Array>;
using At = ffi::Span<const int64_t>;

inline auto unary() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Attr<At>("at").Ret<Array>(); }

inline auto binary() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Attr<At>("at").Ret<Array>();
}

}  // namespace nas
