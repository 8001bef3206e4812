#include "local.h"

#include "handlers.h"

namespace nas {

static Index part(const Array& whole, Index members) { return static_cast<Index>(whole.element_count()) / members; }

// Calls body(layer, images, member) for each member, `batch` being the images of all.
template <typename Body>
static ffi::Error each_member(At at, const Array& batch, Index inputs, Index outputs, const Body& body) {
  const Geometry geometry(at);
  const Layer layer(geometry, inputs, outputs);
  const Index images = batch.dimensions()[0] / geometry.members;
  for (Index member = 0; member < geometry.members; ++member) body(layer, images, member);
  return ffi::Error::Success();
}

static ffi::Error forward(ffi::ThreadPool threads, Array x, Array w, At at, Out y) {
  const Index members = Geometry(at).members;
  return each_member(at, x, w.dimensions()[4], w.dimensions()[5], [&](const Layer& layer, Index images, Index i) {
    local({&threads}, layer, images, x.typed_data() + i * part(x, members), w.typed_data() + i * part(w, members),
          y->typed_data() + i * part(*y, members));
  });
}

static ffi::Error input_gradient(ffi::ThreadPool threads, Array dy, Array w, At at, Out dx) {
  const Index members = Geometry(at).members;
  return each_member(at, dy, w.dimensions()[4], w.dimensions()[5], [&](const Layer& layer, Index images, Index i) {
    local_dx({&threads}, layer, images, dy.typed_data() + i * part(dy, members),
             w.typed_data() + i * part(w, members), dx->typed_data() + i * part(*dx, members));
  });
}

static ffi::Error weight_gradient(ffi::ThreadPool threads, Array x, Array dy, At at, Out dw) {
  const Index members = Geometry(at).members;
  return each_member(at, x, x.dimensions()[3], dy.dimensions()[3], [&](const Layer& layer, Index images, Index i) {
    local_dw({&threads}, layer, images, x.typed_data() + i * part(x, members),
             dy.typed_data() + i * part(dy, members), dw->typed_data() + i * part(*dw, members));
  });
}

}  // namespace nas

XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_local, nas::forward, nas::binary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_local_dx, nas::input_gradient, nas::binary());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nas_local_dw, nas::weight_gradient, nas::binary());
