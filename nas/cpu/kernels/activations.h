// Activations of vectors, and the gradients through them.
#pragma once

#include "vectors.h"

namespace nas {

inline Vec clamp(Vec z, float low, float high) {  // NaN passes
  z = z < low ? splat(low) : z;
  return z > high ? splat(high) : z;
}

// e^z to two units in the last place: 2^n times a polynomial of what is left, |r| <= log(2) / 2 (Cephes).
inline Vec exponential(Vec z) {
  z = clamp(z, -87.0f, 88.0f);
  const float round = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
  const Vec n = (z * 1.44269504f + round) - round;
  const Vec r = z - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    p = p * r + next;
  }
  const Vector<kWidth, int32_t> power = (__builtin_convertvector(n, Vector<kWidth, int32_t>) + 127) << 23;
  return (p * r * r + r + 1.0f) * (Vec)power;
}

// Of each: its value at z, and the gradient by z from that by the value.
struct Identity {
  static Vec value(Vec z) { return z; }
  static Vec gradient(Vec, Vec dy) { return dy; }
};

struct Relu {
  static Vec value(Vec z) { return z < 0.0f ? Vec{} : z; }
  static Vec gradient(Vec z, Vec dy) { return z > 0.0f ? dy : Vec{}; }
};

struct Relu6 {
  static Vec value(Vec z) { return clamp(z, 0.0f, 6.0f); }
  static Vec gradient(Vec z, Vec dy) { return z > 0.0f ? (z < 6.0f ? dy : Vec{}) : Vec{}; }
};

struct Silu {
  static Vec sigmoid(Vec z) { return 1.0f / (1.0f + exponential(-z)); }
  static Vec value(Vec z) { return z * sigmoid(z); }
  static Vec gradient(Vec z, Vec dy) {
    const Vec s = sigmoid(z);
    return dy * s * (1.0f + z * (1.0f - s));
  }
};

struct HardSwish {
  static Vec value(Vec z) { return z * clamp(z + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f); }
  static Vec gradient(Vec z, Vec dy) {
    const Vec between = dy * (z * 2.0f + 3.0f) * (1.0f / 6.0f);
    return z > -3.0f ? (z < 3.0f ? between : dy) : Vec{};
  }
};

// Calls body with the activation of that number, in the order of nas/cpu/normalisation.py.
template <class Body>
void with_activation(Index number, const Body& body) {
  switch (number) {
    case 0: return body(Identity());
    case 1: return body(Relu());
    case 2: return body(Relu6());
    case 3: return body(Silu());
    default: return body(HardSwish());
  }
}

}  // namespace nas
