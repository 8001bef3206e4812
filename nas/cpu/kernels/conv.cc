#include "conv.h"

#include "handlers.h"

namespace nas {

static ffi::Error forward(ffi::ThreadPool threads, Array x, Array w, At at, Out y) {
  conv({&threads}, Geometry(at), false, x.typed_data(), Images(x), w.typed_data(), w.dimensions()[2], w.dimensions()[3],
       y->typed_data(), Images(*y));
  return ffi::Error::Success();
}

static ffi::Error input_gradient(ffi::ThreadPool threads, Array dy, Array w, At at, Out dx) {
  conv({&threads}, Geometry(at), true, dy.typed_data(), Images(dy), w.typed_data(), w.dimensions()[2],
       w.dimensions()[3], dx->typed_data(), Images(*dx));
  return ffi::Error::Success();
}

}  // namespace nas

XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_conv, nas::forward, nas::binary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_conv_dx, nas::input_gradient, nas::binary());
