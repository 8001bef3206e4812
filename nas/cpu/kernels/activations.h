// Activations and their slopes, on vectors.
#pragma once

#include "vectors.h"

namespace nas {

// e^v = power * (residue + 1) (Cephes' expf: range reduction by ln 2 in two parts, a polynomial of degree 7). NaN stays
// NaN.
struct Exponential {
  Vec power;    // 2^n
  Vec residue;  // e^r - 1
  explicit Exponential(Vec v) {
    v = v < -87.3f ? splat(-87.3f) : v;
    v = v > 88.3f ? splat(88.3f) : v;
    const Vec n = (v * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // to the nearest integer
    Vec r = v - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
      p = p * r + next;
    }
    residue = p * (r * r) + r;
    const auto bits = (__builtin_convertvector(n, Vector<kWidth, int32_t>) + 127) << 23;
    std::memcpy(&power, &bits, sizeof power);
  }
};
inline Vec exp(Vec v) {
  const Exponential e(v);
  return e.power * e.residue + e.power;
}
inline Vec expm1(Vec v) {
  const Exponential e(v);
  return e.power * e.residue + (e.power - 1.0f);
}
inline Vec sigmoid(Vec v) { return 1.0f / (1.0f + exp(-v)); }
inline Vec tanh(Vec v) {  // Cephes' tanhf
  const Vec square = v * v;
  Vec p = splat(-5.70498872745e-3f);
  for (float next : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f}) {
    p = p * square + next;
  }
  const Vec small = p * square * v + v;
  const Vec size = v < 0.0f ? -v : v;
  const Vec far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  return size < 0.625f ? small : (v < 0.0f ? -far : far);
}

// value(z), and its slope d value / dz: from the value where `from_value`, else from z. Comparisons are written so that
// NaN passes through.
struct Identity {
  static constexpr bool from_value = true;
  static Vec value(Vec z) { return z; }
  static Vec slope(Vec) { return splat(1.0f); }
};
struct Relu {
  static constexpr bool from_value = true;
  static Vec value(Vec z) { return z < 0.0f ? Vec{} : z; }
  static Vec slope(Vec y) { return y > 0.0f ? splat(1.0f) : Vec{}; }
};
struct Relu6 {
  static constexpr bool from_value = true;
  static Vec value(Vec z) { return z < 0.0f ? Vec{} : (z > 6.0f ? splat(6.0f) : z); }
  static Vec slope(Vec y) { return y > 0.0f ? (y < 6.0f ? splat(1.0f) : Vec{}) : Vec{}; }
};
struct LeakyRelu {
  static constexpr bool from_value = true;
  static Vec value(Vec z) { return z < 0.0f ? z * 0.01f : z; }
  static Vec slope(Vec y) { return y < 0.0f ? splat(0.01f) : splat(1.0f); }
};
struct Elu {
  static constexpr bool from_value = true;
  static Vec value(Vec z) { return z > 0.0f ? z : expm1(z); }
  static Vec slope(Vec y) { return y > 0.0f ? splat(1.0f) : y + 1.0f; }
};
struct Tanh {
  static constexpr bool from_value = true;
  static Vec value(Vec z) { return tanh(z); }
  static Vec slope(Vec y) { return 1.0f - y * y; }
};
struct Sigmoid {
  static constexpr bool from_value = true;
  static Vec value(Vec z) { return sigmoid(z); }
  static Vec slope(Vec y) { return y * (1.0f - y); }
};
struct Gelu {  // z/2 (1 + tanh u) = z sigmoid(2u), u = sqrt(2/pi) (z + 0.044715 z^3)
  static constexpr bool from_value = false;
  static Vec gate(Vec z) { return sigmoid(z * (1.5957691216057308f + 0.07135481282052708f * (z * z))); }
  static Vec value(Vec z) { return z * gate(z); }
  static Vec slope(Vec z) {
    const Vec g = gate(z);
    return g + z * g * (1.0f - g) * (1.5957691216057308f + 0.21406443846158125f * (z * z));
  }
};
struct Silu {
  static constexpr bool from_value = false;
  static Vec value(Vec z) { return z * sigmoid(z); }
  static Vec slope(Vec z) {
    const Vec s = sigmoid(z);
    return s + z * s * (1.0f - s);
  }
};
struct HardSwish {
  static constexpr bool from_value = false;
  static Vec value(Vec z) { return z * Relu6::value(z + 3.0f) * (1.0f / 6.0f); }
  static Vec slope(Vec z) { return z <= -3.0f ? Vec{} : (z < 3.0f ? z * (1.0f / 3.0f) + 0.5f : splat(1.0f)); }
};

// One of the others, called through pointers: a call costs little beside an exponential, and each kernel is then
// compiled for three activations rather than ten.
struct Other {
  bool from_value;
  Vec (*value)(Vec);
  Vec (*slope)(Vec);
};
template <class Act>
Other other() { return {Act::from_value, Act::value, Act::slope}; }

// Calls body(activation) for an attribute's number: the order of ACTIVATIONS in Python.
template <class Body>
void with_activation(Index number, const Body& body) {
  switch (number) {
    case 0: return body(Identity());
    case 1: return body(Relu());
    case 2: return body(other<Relu6>());
    case 3: return body(other<LeakyRelu>());
    case 4: return body(other<Elu>());
    case 5: return body(other<Tanh>());
    case 6: return body(other<Sigmoid>());
    case 7: return body(other<Gelu>());
    case 8: return body(other<Silu>());
    default: return body(other<HardSwish>());
  }
}

// The slope at z.
template <class Act>
Vec slope_at(const Act& act, Vec z) { return act.slope(act.from_value ? act.value(z) : z); }

// The slope at z + residual, of which the forward pass kept the value where the slope follows from it, else the
// residual; null where there was none.
template <class Act>
Vec slope_at(const Act& act, Vec z, const float* kept, Index at, int n) {
  if (!kept) return slope_at(act, z);
  return act.slope(act.from_value ? load(kept + at, n) : z + load(kept + at, n));
}

}  // namespace nas
