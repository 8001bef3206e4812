// Convolution and its gradients, each by the kernel that suits it.

#include "correlate.h"
#include "depthwise.h"
#include "weights.h"
#include "winograd.h"

namespace nas {
namespace {

// A 1x1 convolution with stride 1 and no padding is a product of matrices: pixels join into long rows.
bool is_pointwise(const Geometry& at) {
  auto plain = [](const Axis& axis) {
    return axis.taps == 1 && axis.stride == 1 && axis.before == 0 && axis.after == 0;
  };
  return plain(at.rows) && plain(at.columns);
}

// x, w -> y; or with `gradient`, dy (called x here), w -> dx (called y).
void convolve(const Call& call, bool gradient) {
  Geometry at(call.integers("at"));
  Images in(call.shape(0)), out(call.result_shape(0));
  const float* x = call.arg(0);
  float* y = call.result(0);
  const Kernel w{call.arg(1), call.shape(1)[2], call.shape(1)[3]};
  auto plan = [&] { return gradient ? gradient_plan(at) : forward_plan(at); };
  if (is_depthwise(at, in.channels, out.channels)) return depthwise(call.pool, plan(), at, x, in, w.data, y, out);
  auto run = [&] {
    const Plan of = plan();
    const auto kernel = suits_winograd(at, of, in.count, in.channels, out.channels) ? winograd : correlate;
    kernel(call.pool, of, at, x, in, w, y, out);
  };
  if (!is_pointwise(at)) return run();
  constexpr Index kRow = 256;
  const Index pixels = in.count * in.rows * in.columns;
  for (auto [count, columns] : {std::pair{pixels / kRow, kRow}, std::pair{Index{1}, pixels % kRow}}) {
    if (count * columns == 0) continue;
    in.count = out.count = count;
    in.rows = out.rows = at.rows.image = 1;
    in.columns = out.columns = at.columns.image = columns;
    run();
    x += count * in.image_floats();
    y += count * out.image_floats();
  }
}

void conv(const Call& call) { convolve(call, false); }
void conv_dx(const Call& call) { convolve(call, true); }

// x, dy -> dw
void conv_dw(const Call& call) {
  const Geometry at(call.integers("at"));
  const Images in(call.shape(0)), out(call.shape(1));
  const bool winograd = suits_winograd(at, forward_plan(at), in.count / at.members, in.channels, out.channels);
  const auto kernel = is_depthwise(at, in.channels, out.channels) ? depthwise_dw : winograd ? winograd_dw : direct_dw;
  kernel(call.pool, at, call.arg(0), in, call.arg(1), out, call.result(0));
}

}  // namespace
}  // namespace nas

NAS_HANDLER(conv);
NAS_HANDLER(conv_dx);
NAS_HANDLER(conv_dw);
