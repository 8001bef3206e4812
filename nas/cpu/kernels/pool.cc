#include "pool.h"

#include "handlers.h"

namespace nas {

static ffi::Error largest(ffi::ThreadPool threads, Array x, At at, Out y) {
  max_pool({&threads}, Geometry(at), x.typed_data(), Images(x), y->typed_data(), Images(*y));
  return ffi::Error::Success();
}

static ffi::Error largest_dx(ffi::ThreadPool threads, Array x, Array dy, At at, Out dx) {
  max_pool_dx({&threads}, Geometry(at), x.typed_data(), Images(x), dy.typed_data(), Images(dy), dx->typed_data());
  return ffi::Error::Success();
}

static ffi::Error largest_gather(ffi::ThreadPool threads, Array x, Array t, At at, Out y) {
  max_pool_gather({&threads}, Geometry(at), x.typed_data(), Images(x), t.typed_data(), Images(*y), y->typed_data());
  return ffi::Error::Success();
}

static ffi::Error average(ffi::ThreadPool threads, Array x, At at, Out y) {
  avg_pool({&threads}, Geometry(at), x.typed_data(), Images(x), y->typed_data(), Images(*y));
  return ffi::Error::Success();
}

static ffi::Error sum(ffi::ThreadPool threads, Array x, At at, Out y) {
  Geometry all(at);
  all.whole = 2;
  avg_pool({&threads}, all, x.typed_data(), Images(x), y->typed_data(), Images(*y));
  return ffi::Error::Success();
}

static ffi::Error average_dx(ffi::ThreadPool threads, Array dy, At at, Out dx) {
  avg_pool_dx({&threads}, Geometry(at), dy.typed_data(), Images(dy), dx->typed_data(), Images(*dx));
  return ffi::Error::Success();
}

}  // namespace nas

XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_max_pool, nas::largest, nas::unary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_max_pool_dx, nas::largest_dx, nas::binary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_max_pool_gather, nas::largest_gather, nas::binary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_sum_pool, nas::sum, nas::unary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_avg_pool, nas::average, nas::unary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_avg_pool_dx, nas::average_dx, nas::unary());
