// A depthwise convolution and the 1x1 convolution after it, together: what is between them never leaves the cache.

#include "depthwise.h"
#include "weights.h"

namespace nas {
namespace {

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
    for (const Panel& panel : panels_) {
      multiply(panel, pixels, from, inputs_, weights_.data() + panel.first * inputs_, to + panel.first, outputs_,
               panel.lanes);
    }
  }

 private:
  const Index inputs_, outputs_;
  const std::vector<Panel> panels_;
  std::vector<float> weights_;
};

// Adds the gradient of a 1x1 convolution's matrix [inputs][outputs] from some pixels to `sums`. The outputs fill whole
// vectors.
void add_outer(const float* x, Index inputs, const float* dy, Index outputs, Index pixels, float* sums) {
  for (const Panel& panel : panels_of(outputs)) {
    outer_products(panel, inputs, x, {0, 0, inputs}, dy, {0, 0, outputs}, {1, 1, pixels}, sums, outputs, false);
  }
}

constexpr Index kBetween = 8 * 1024;  // floats between the convolutions at a time: a fraction of a first-level cache

// x [B, H, W, C], w [kh, kw, 1, C], p [1, 1, C, O] -> y [B, H', W', O]
void separable(const Call& call) {
  const Geometry at(call.integers("at"));
  const Images in(call.shape(0)), out(call.result_shape(0)), between(out.count, out.rows, out.columns, in.channels);
  const float *x = call.arg(0), *w = call.arg(1);
  float* y = call.result(0);
  const Depthwise first(forward_plan(at), at, in, between);
  const Pointwise second(call.arg(2), in.channels, out.channels, false);
  Index band = first.band();
  while (band > 1 && band * between.row_floats() > kBetween) band = ceil_div(band, 2);
  while (band > 2 && in.count * ceil_div(out.rows, band) < 4 * call.pool.size()) band = ceil_div(band, 2);
  const Index bands = ceil_div(out.rows, band);
  parallel(call.pool, in.count * bands, [&](Index unit) {
    const Index image = unit / bands, begin = unit % bands * band, rows = std::min(out.rows - begin, band);
    const Scratch<float> middle(band * between.row_floats());
    first.rows(x + image * in.image_floats(), w, begin, begin + rows, middle - begin * between.row_floats());
    second.run(middle, rows * out.columns, y + image * out.image_floats() + begin * out.row_floats());
  });
}

// dy, x, w, p -> those of dx, dw and dp that have a bit in `asked`. What is between the convolutions is computed again.
void separable_backward(const Call& call) {
  const Geometry at(call.integers("at"));
  const Images out(call.shape(0)), in(call.shape(1)), between(out.count, out.rows, out.columns, in.channels);
  const float *dy = call.arg(0), *x = call.arg(1), *w = call.arg(2), *p = call.arg(3);
  float* gradients[3] = {};
  for (Index i = 0, next = 0; i < 3; ++i) {
    if (call.integer("asked") >> i & 1) gradients[i] = call.result(next++);
  }
  float *dx = gradients[0], *dw = gradients[1], *dp = gradients[2];
  const Depthwise forward(forward_plan(at), at, in, between), backward(gradient_plan(at), at, between, in);
  const Pointwise through(p, out.channels, in.channels, true);
  const DepthwiseWeights weights(at, in, between);
  const Index of_w = weights.floats(), of_p = in.channels * out.channels, pixels = out.rows * out.columns;
  const Index chunks = chunks_of(in.count);
  const Scratch<float> sums(chunks * (of_w + of_p));
  parallel(call.pool, chunks, [&](Index chunk) {
    float *of_depthwise = sums + chunk * (of_w + of_p), *of_pointwise = of_depthwise + of_w;
    fill_floats(of_depthwise, 0.0f, of_w + of_p);
    const Scratch<float> middle(between.image_floats());
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
    dp[i] = 0;
    for (Index chunk = 0; chunk < chunks; ++chunk) dp[i] += sums[chunk * (of_w + of_p) + of_w + i];
  }
}

}  // namespace
}  // namespace nas

NAS_HANDLER(separable);
NAS_HANDLER(separable_backward);
