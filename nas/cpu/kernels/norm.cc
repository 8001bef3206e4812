// Batch normalisation with an activation, and its derivatives. Each kernel reads its memory as few times as it can.

#include "activations.h"
#include "rows.h"

namespace nas {
namespace {

// Mean and biased variance of each channel. Sums are taken about a rough mean, of pixels spread over the batch: squares
// then lose nothing to cancellation.
void statistics(const Pool& pool, const Rows& rows, const float* x, float* mean, float* variance) {
  const Index channels = rows.channels, pixels = rows.total / channels, sampled = std::min<Index>(pixels, 64);
  std::vector<double> total(channels);
  for (Index i = 0; i < sampled; ++i)
    for (Index c = 0; c < channels; ++c) total[c] += x[i * pixels / sampled * channels + c];
  std::vector<float> rough(channels);
  for (Index c = 0; c < channels; ++c) rough[c] = static_cast<float>(total[c] / sampled);
  const Repeated repeated(rows, {rough.data()});
  const float* pivot = repeated[0];
  const std::vector<double> sums = sum_channels<2>(pool, rows, [=](Index at, Index j, int n, Vec* s) {
    const Vec v = keep(load(x + at, n) - load(pivot + j), n);
    s[0] += v;
    s[1] += v * v;
  });
  for (Index c = 0; c < channels; ++c) {
    const double offset = sums[c] / pixels, spread = sums[channels + c] / pixels - offset * offset;
    mean[c] = static_cast<float>(rough[c] + offset);
    variance[c] = static_cast<float>(spread < 0 ? 0 : spread);
  }
}

// What x - mean is multiplied by: scale / deviation.
std::vector<float> gains(const float* scale, const std::vector<double>& inverse) {
  std::vector<float> gain(inverse.size());
  for (std::size_t c = 0; c < gain.size(); ++c) gain[c] = static_cast<float>(scale[c] * inverse[c]);
  return gain;
}

// x -> mean, variance
void moments(const Call& call) {
  statistics(call.pool, Rows(call.last(0), call.size(0)), call.arg(0), call.result(0), call.result(1));
}

// x, scale, bias -> y, mean, variance
void batch_norm(const Call& call) {
  const Rows rows(call.last(0), call.size(0));
  const float* x = call.arg(0);
  float *y = call.result(0), *mean = call.result(1), *variance = call.result(2);
  statistics(call.pool, rows, x, mean, variance);
  const std::vector<float> gain =
      gains(call.arg(1), inverse_deviations(variance, rows.channels, call.real("eps")));
  const Repeated repeated(rows, {mean, gain.data(), call.arg(2)});
  const float *m = repeated[0], *a = repeated[1], *b = repeated[2];
  with_activation(call.integer("activation"), [&](auto act) {
    each_vector(call.pool, rows, [=](Index at, Index j, int n) {
      store(y + at, act.value((load(x + at, n) - load(m + j)) * load(a + j) + load(b + j)), n);
    });
  });
}

template <class Activation>
void backward(const Call& call, Activation act) {
  const Index channels = call.last(0);
  const Rows rows(channels, call.size(0));
  const double pixels = static_cast<double>(rows.total / channels);
  const float *dy = call.arg(0), *x = call.arg(1);
  float* dx = call.result(0);
  const std::vector<double> inverse = inverse_deviations(call.arg(3), channels, call.real("eps"));
  const std::vector<float> gain = gains(call.arg(4), inverse);
  const Repeated repeated(rows, {call.arg(2), gain.data(), call.arg(5)});
  const float *m = repeated[0], *a = repeated[1], *b = repeated[2];
  const auto gradient = [=](Index at, Index j, int n, Vec centred) {  // before the activation
    return act.gradient(centred * load(a + j) + load(b + j), load(dy + at, n));
  };
  // Sums a channel of that gradient g and of g (x - mean).
  const std::vector<double> sums = sum_channels<2>(call.pool, rows, [=](Index at, Index j, int n, Vec* s) {
    const Vec centred = load(x + at, n) - load(m + j), g = gradient(at, j, n, centred);
    s[0] += g;
    s[1] += g * centred;
  });
  // dx = gain * (g - mean of g - (x - mean) * mean of g (x - mean) / variance)
  std::vector<float> from_x(channels), constant(channels);
  for (Index c = 0; c < channels; ++c) {
    const double g = sums[c], along = sums[channels + c];
    call.result(1)[c] = static_cast<float>(along * inverse[c]);
    call.result(2)[c] = static_cast<float>(g);
    from_x[c] = static_cast<float>(-along / pixels * inverse[c] * inverse[c] * gain[c]);
    constant[c] = static_cast<float>(-g / pixels * gain[c]);
  }
  const Repeated more(rows, {from_x.data(), constant.data()});
  const float *p = more[0], *q = more[1];
  each_vector(call.pool, rows, [=](Index at, Index j, int n) {
    const Vec centred = load(x + at, n) - load(m + j), g = gradient(at, j, n, centred);
    store(dx + at, g * load(a + j) + (centred * load(p + j) + load(q + j)), n);
  });
}

// dy, x, mean, variance, scale, bias -> dx, dscale, dbias
void batch_norm_backward(const Call& call) {
  with_activation(call.integer("activation"), [&](auto act) { backward(call, act); });
}

template <class Activation>
void backward_tangent(const Call& call, Activation act) {
  const Index channels = call.last(0);
  const Rows rows(channels, call.size(0));
  const double pixels = static_cast<double>(rows.total / channels);
  const float *dy = call.arg(0), *x = call.arg(1), *ddy = call.arg(6), *tx = call.arg(7);
  float* out = call.result(0);
  const std::vector<double> inverse = inverse_deviations(call.arg(3), channels, call.real("eps"));
  const std::vector<float> gain = gains(call.arg(4), inverse);
  const Repeated repeated(rows, {call.arg(2), gain.data(), call.arg(5)});
  const float *m = repeated[0], *a = repeated[1], *b = repeated[2];
  // What the activation lets through; u is x - mean.
  const auto slope = [=](Vec u, Index j) { return act.gradient(u * load(a + j) + load(b + j), splat(1.0f)); };

  // Sums a channel of g, g u, g', g' u, x', x' u and g x'.
  constexpr int kSums = 7;
  const std::vector<double> total = sum_channels<kSums>(call.pool, rows, [=](Index at, Index j, int n, Vec* s) {
    const Vec u = load(x + at, n) - load(m + j), pass = slope(u, j);
    const Vec g = load(dy + at, n) * pass, changed = load(ddy + at, n) * pass, t = load(tx + at, n);
    s[0] += g;
    s[1] += g * u;
    s[2] += changed;
    s[3] += changed * u;
    s[4] += t;
    s[5] += t * u;
    s[6] += g * t;
  });

  // With i = 1 / deviation and h = i (x' - mean of x' - i^2 u * mean of x' u), the tangent of i u: the tangent of
  // dx = gain (g - mean of g - i^2 u * mean of g u), as coefficients of g', g, x', u and 1.
  std::vector<float> factors(5 * channels);
  for (Index c = 0; c < channels; ++c) {
    double mean[kSums];
    for (int k = 0; k < kSums; ++k) mean[k] = total[k * channels + c] / pixels;
    const double i = inverse[c], scaled = call.arg(4)[c] * i;
    const double shrink = -i * i * mean[5];  // the relative change of i
    const double met = i * (mean[6] - mean[4] * mean[0] - i * i * mean[5] * mean[1]);  // mean of g h
    const double slant = i * mean[1];                                                  // mean of g i u
    const double found[] = {scaled, scaled * shrink, -scaled * slant * i,
                            scaled * i * (-i * mean[3] - shrink * i * mean[1] + slant * i * i * mean[5] - met),
                            scaled * (-mean[2] - shrink * mean[0] + slant * i * mean[4])};
    for (int k = 0; k < 5; ++k) factors[k * channels + c] = static_cast<float>(found[k]);
    call.result(1)[c] = static_cast<float>(pixels * (i * mean[3] + met));
    call.result(2)[c] = static_cast<float>(pixels * mean[2]);
  }
  const float* factor = factors.data();
  const Repeated by(rows, {factor, factor + channels, factor + 2 * channels, factor + 3 * channels,
                           factor + 4 * channels});
  const float *of_ddy = by[0], *of_dy = by[1], *of_tx = by[2], *of_u = by[3], *of_one = by[4];
  each_vector(call.pool, rows, [=](Index at, Index j, int n) {
    const Vec u = load(x + at, n) - load(m + j);
    const Vec g = slope(u, j) * (load(ddy + at, n) * load(of_ddy + j) + load(dy + at, n) * load(of_dy + j));
    store(out + at, g + load(tx + at, n) * load(of_tx + j) + (u * load(of_u + j) + load(of_one + j)), n);
  });
}

// The derivative of batch_norm_backward along (ddy, tx), tangents of dy and x, for activations without curves:
// dy, x, mean, variance, scale, bias, ddy, tx -> tangents of dx, dscale, dbias
void batch_norm_backward_tangent(const Call& call) {
  with_activation(call.integer("activation"), [&](auto act) { backward_tangent(call, act); });
}

}  // namespace
}  // namespace nas

NAS_HANDLER(moments);
NAS_HANDLER(batch_norm);
NAS_HANDLER(batch_norm_backward);
NAS_HANDLER(batch_norm_backward_tangent);
