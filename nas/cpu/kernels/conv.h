// Convolution and its gradients, each by the kernel that suits it.
#pragma once

#include "correlate.h"
#include "depthwise.h"
#include "weights.h"
#include "winograd.h"

namespace nas {

inline bool is_depthwise(const Geometry& at, Index channels, Index outputs) {
  return at.groups == channels && channels == outputs && at.members == 1 && channels > 1;
}

// A 1x1 convolution with stride 1 and no padding is a product of matrices: pixels join into long rows.
inline bool is_pointwise(const Geometry& at) {
  auto plain = [](const Axis& axis) {
    return axis.taps == 1 && axis.stride == 1 && axis.before == 0 && axis.after == 0;
  };
  return plain(at.rows) && plain(at.columns) && at.members == 1;
}

inline void conv_or_dx(const Pool& pool, Geometry at, bool gradient, const float* x, Images in, const float* w,
                       Index kernel_inputs, Index kernel_outputs, float* y, Images out) {
  auto run = [&] {
    const Plan plan = gradient ? gradient_plan(at) : forward_plan(at);
    if (suits_winograd(at, plan, in.count, in.channels, out.channels)) {
      return winograd(pool, plan, at, x, in, w, kernel_inputs, kernel_outputs, y, out);
    }
    correlate(pool, plan, at, x, in, w, kernel_inputs, kernel_outputs, y, out);
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

// y from x, or with `gradient` dx (in y's place) from dy (in x's).
inline void conv(const Pool& pool, const Geometry& at, bool gradient, const float* x, Images in, const float* w,
                 Index kernel_inputs, Index kernel_outputs, float* y, Images out) {
  if (is_depthwise(at, in.channels, out.channels)) {
    depthwise(pool, gradient ? gradient_plan(at) : forward_plan(at), at, x, in, w, y, out);
  } else {
    conv_or_dx(pool, at, gradient, x, in, w, kernel_inputs, kernel_outputs, y, out);
  }
}

inline void conv_dw(const Pool& pool, const Geometry& at, const float* x, Images in, const float* dy, Images out,
                    float* dw) {
  if (is_depthwise(at, in.channels, out.channels)) {
    depthwise_dw(pool, at, x, in, dy, out, dw);
  } else if (suits_winograd(at, forward_plan(at), in.count, in.channels, out.channels)) {
    winograd_dw(pool, at, x, in, dy, out, dw);
  } else {
    direct_dw(pool, at, x, in, dy, out, dw);
  }
}

}  // namespace nas
