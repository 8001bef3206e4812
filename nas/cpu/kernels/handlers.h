// XLA's custom calls: float32 arrays in and out, and attributes by name.
#pragma once

#include "threads.h"

namespace nas {

// The arrays and attributes of one call. The Python side passes what the kernel expects: nothing but the type of the
// arrays is checked. Not inlined: decoding is long, and there is much of it.
struct Call {
  Pool pool;
  const ffi::RemainingArgs& in;
  const ffi::RemainingRets& out;
  const ffi::Dictionary& attributes;

  using Numbers = ffi::Span<const int64_t>;
  __attribute__((noinline)) ffi::AnyBuffer input(std::size_t i) const { return *in.get<ffi::AnyBuffer>(i); }
  __attribute__((noinline)) ffi::AnyBuffer output(std::size_t i) const { return **out.get<ffi::AnyBuffer>(i); }
  __attribute__((noinline)) Index integer(const char* name) const { return *attributes.get<int64_t>(name); }
  __attribute__((noinline)) double real(const char* name) const { return *attributes.get<double>(name); }
  __attribute__((noinline)) Numbers integers(const char* name) const { return *attributes.get<Numbers>(name); }

  const float* arg(std::size_t i) const { return static_cast<const float*>(input(i).untyped_data()); }
  float* result(std::size_t i) const { return static_cast<float*>(output(i).untyped_data()); }
  Numbers shape(std::size_t i) const { return input(i).dimensions(); }
  Numbers result_shape(std::size_t i) const { return output(i).dimensions(); }
  Index size(std::size_t i) const { return input(i).element_count(); }
  Index last(std::size_t i) const { return shape(i).size() ? shape(i).back() : 1; }
};

template <void (*kernel)(const Call&)>
ffi::Error enter(ffi::ThreadPool threads, ffi::RemainingArgs in, ffi::RemainingRets out, ffi::Dictionary attributes) {
  const Call call{{&threads}, in, out, attributes};
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (call.input(i).element_type() != ffi::F32) return ffi::Error::InvalidArgument("an array is not float32");
  }
  kernel(call);
  return ffi::Error::Success();
}

}  // namespace nas

// The target nas_<kernel>, which calls nas::<kernel>.
#define NAS_HANDLER(kernel)                            \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                       \
      nas_##kernel, nas::enter<nas::kernel>,           \
      xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs())
