// A depthwise convolution and the 1x1 convolution after it, together: what is between them never leaves the cache.
#pragma once

#include "correlate.h"
#include "depthwise.h"
#include "weights.h"

namespace nas {

// Pixels [n][inputs] times a matrix. `swapped`: the matrix is stored [outputs][inputs].
class Pointwise {
 public:
  Pointwise(const float* w, Index inputs, Index outputs, bool swapped)
      : inputs_(inputs), outputs_(outputs), panels_(panels_of(outputs)) {
    for (const Panel& panel : panels_) {
      for (Index i = 0; i < inputs; ++i) {
        for (Index o = panel.first; o < panel.first + panel.floats(); ++o) {
          weights_.push_back(o >= outputs ? 0.0f : swapped ? w[o * inputs + i] : w[i * outputs + o]);
        }
      }
    }
  }

  void run(const float* from, Index pixels, float* to) const {
    const Index origin = 0;
    const float* weights = weights_.data();
    for (const Panel& panel : panels_) {
      const Index tiles = ceil_div(pixels, panel.pixels());
      const Index wide = ceil_div(pixels, tiles), wides = pixels - (wide - 1) * tiles;
      const TileFunction wide_tile = panel.function(wide);
      const TileFunction narrow_tile = wide > 1 ? panel.function(wide - 1) : nullptr;
      const float* source = from;
      float* target = to + panel.first;
      for (Index t = 0; t < tiles; ++t) {
        (t < wides ? wide_tile : narrow_tile)(source, inputs_, &origin, 1, inputs_, weights, target, outputs_,
                                              panel.lanes);
        source += (t < wides ? wide : wide - 1) * inputs_;
        target += (t < wides ? wide : wide - 1) * outputs_;
      }
      weights += inputs_ * panel.floats();
    }
  }

 private:
  const Index inputs_, outputs_;
  const std::vector<Panel> panels_;
  std::vector<float> weights_;
};

// Adds the gradient of a 1x1 convolution's matrix [inputs][outputs] from some pixels to `sums`. The outputs fill whole
// vectors.
inline void add_outer(const float* x, Index inputs, const float* dy, Index outputs, Index pixels, float* sums) {
  const Steps x_step{0, 0, inputs}, dy_step{0, 0, outputs};
  for (const Panel& panel : panels_of(outputs)) {
    const Index tiles = ceil_div(inputs, most_taps_of(panel));
    const Index wide = ceil_div(inputs, tiles), wides = inputs - (wide - 1) * tiles;
    for (Index t = 0, first = 0; t < tiles; ++t) {
      const Index adjacent = t < wides ? wide : wide - 1;
      outer_function(panel, adjacent)(x + first, x_step, dy + panel.first, dy_step, 1, 1, pixels,
                                      sums + first * outputs + panel.first, outputs, false);
      first += adjacent;
    }
  }
}

constexpr Index kBetween = 8 * 1024;  // floats between the two convolutions at a time: a fraction of a first-level cache

// y [B, H', W', O] from x [B, H, W, C], w [kh, kw, 1, C] and p [1, 1, C, O].
inline void separable(const Pool& pool, const Geometry& at, const float* x, Images in, const float* w, const float* p,
                      float* y, Images out) {
  const Images between(out.count, out.rows, out.columns, in.channels);
  const Depthwise first(forward_plan(at), at, in, between);
  const Pointwise second(p, in.channels, out.channels, false);
  Index band = first.band();
  while (band > 1 && band * between.row_floats() > kBetween) band = ceil_div(band, 2);
  while (band > 2 && in.count * ceil_div(out.rows, band) < 4 * pool.size()) band = ceil_div(band, 2);
  const Index bands = ceil_div(out.rows, band);
  parallel(pool, in.count * bands, [&](Index unit) {
    const Index image = unit / bands, begin = unit % bands * band, rows = std::min(out.rows - begin, band);
    float* middle = scratch(kPacked2, band * between.row_floats());
    first.rows(x + image * in.image_floats(), w, begin, begin + rows, middle - begin * between.row_floats());
    second.run(middle, rows * out.columns, y + image * out.image_floats() + begin * out.row_floats());
  });
}

// Its gradients; what is null is not wanted. What is between the convolutions is computed again.
inline void separable_backward(const Pool& pool, const Geometry& at, const float* dy, Images out, const float* x,
                               Images in, const float* w, const float* p, float* dx, float* dw, float* dp) {
  const Images between(out.count, out.rows, out.columns, in.channels);
  const Depthwise forward(forward_plan(at), at, in, between), backward(gradient_plan(at), at, between, in);
  const Pointwise through(p, out.channels, in.channels, true);
  const DepthwiseWeights weights(at, in, between);
  const Index of_w = weights.floats(), of_p = in.channels * out.channels, pixels = out.rows * out.columns;
  const Index chunks = chunks_of(in.count);
  float* sums = scratch(kPartial, chunks * (of_w + of_p));
  parallel(pool, chunks, [&](Index chunk) {
    float *of_depthwise = sums + chunk * (of_w + of_p), *of_pointwise = of_depthwise + of_w;
    fill_floats(of_depthwise, 0.0f, of_w + of_p);
    float* middle = scratch(kPacked2, between.image_floats());
    for (Index image = in.count * chunk / chunks; image < in.count * (chunk + 1) / chunks; ++image) {
      const float *from = x + image * in.image_floats(), *given = dy + image * out.image_floats();
      if (dp) {
        for (Index row = 0, band = forward.band(); row < out.rows; row += band) {
          forward.rows(from, w, row, std::min(out.rows, row + band), middle);
        }
        add_outer(middle, in.channels, given, out.channels, pixels, of_pointwise);
      }
      if (!dx && !dw) continue;
      through.run(given, pixels, middle);
      if (dw) weights.add(from, middle, of_depthwise);
      if (!dx) continue;
      for (Index row = 0, band = backward.band(); row < backward.rows(); row += band) {
        backward.rows(middle, w, row, std::min(backward.rows(), row + band), dx + image * in.image_floats());
      }
    }
  });
  if (dw) weights.join(sums, chunks, of_w + of_p, dw);
  if (!dp) return;
  for (Index i = 0; i < of_p; ++i) {
    float sum = 0;
    for (Index chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * (of_w + of_p) + of_w + i];
    dp[i] = sum;
  }
}

}  // namespace nas
