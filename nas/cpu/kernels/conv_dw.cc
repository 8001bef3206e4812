#include "conv.h"
#include "handlers.h"

namespace nas {

static ffi::Error weight_gradient(ffi::ThreadPool threads, Array x, Array dy, At at, Out dw) {
  conv_dw({&threads}, Geometry(at), x.typed_data(), Images(x), dy.typed_data(), Images(dy), dw->typed_data());
  return ffi::Error::Success();
}

}  // namespace nas

XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_conv_dw, nas::weight_gradient, nas::binary());
