#include "separable.h"

#include "handlers.h"

namespace nas {

static ffi::Error together(ffi::ThreadPool threads, Array x, Array w, Array p, At at, Out y) {
  separable({&threads}, Geometry(at), x.typed_data(), Images(x), w.typed_data(), p.typed_data(), y->typed_data(),
            Images(*y));
  return ffi::Error::Success();
}

// `asked` has a bit for each of dx, dw and dp; the results are those.
static ffi::Error gradients(ffi::ThreadPool threads, Array dy, Array x, Array w, Array p, ffi::RemainingRets results,
                            At at, int64_t asked) {
  float* found[3] = {};
  std::size_t next = 0;
  for (int i = 0; i < 3; ++i) {
    if (asked >> i & 1) found[i] = (*results.get<Array>(next++))->typed_data();
  }
  separable_backward({&threads}, Geometry(at), dy.typed_data(), Images(dy), x.typed_data(), Images(x), w.typed_data(),
                     p.typed_data(), found[0], found[1], found[2]);
  return ffi::Error::Success();
}

}  // namespace nas

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nas_separable, nas::together,
    nas::ffi::Ffi::Bind().Ctx<nas::ffi::ThreadPool>().Arg<nas::Array>().Arg<nas::Array>().Arg<nas::Array>()
        .Attr<nas::At>("at").Ret<nas::Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nas_separable_backward, nas::gradients,
    nas::ffi::Ffi::Bind().Ctx<nas::ffi::ThreadPool>().Arg<nas::Array>().Arg<nas::Array>().Arg<nas::Array>()
        .Arg<nas::Array>().RemainingRets().Attr<nas::At>("at").Attr<int64_t>("asked"));
