// SIMD vectors of floats, and loops over arrays by them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace nas {

using Index = std::ptrdiff_t;

#if defined(__AVX512F__)
constexpr int kWidth = 16;      // floats in the widest vector
constexpr int kRegisters = 28;  // of them, how many may hold sums
#elif defined(__AVX__)
constexpr int kWidth = 8;
constexpr int kRegisters = 12;
#elif defined(__aarch64__)
constexpr int kWidth = 4;
constexpr int kRegisters = 28;
#else
constexpr int kWidth = 4;
constexpr int kRegisters = 12;
#endif

template <int W, typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <int W, typename T = float>
using Vector = typename VectorOf<W, T>::type;
using Vec = Vector<kWidth>;

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

template <int W = kWidth, typename T>
inline Vector<W, T> load(const T* from) {
  Vector<W, T> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <int W = kWidth, typename T>
inline void store(T* to, Vector<W, T> value) {
  std::memcpy(to, &value, sizeof value);
}

template <int W>
inline void store_lanes(float* to, Vector<W> value, int lanes) {
  std::memcpy(to, &value, lanes * sizeof(float));
}

inline Vec splat(float value) { return Vec{} + value; }

// The first n lanes; the others read as zero and are not written.
#if defined(__AVX512F__)
inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vec load(const float* from, int n) {
  return n == kWidth ? load(from) : (Vec)_mm512_maskz_loadu_ps(first_lanes(n), from);
}
inline void store(float* to, Vec value, int n) {
  n == kWidth ? store(to, value) : _mm512_mask_storeu_ps(to, first_lanes(n), (__m512)value);
}
inline Vec keep(Vec value, int n) { return (Vec)_mm512_maskz_mov_ps(first_lanes(n), (__m512)value); }
#else
inline Vec load(const float* from, int n) {
  if (n == kWidth) return load(from);
  Vec value{};
  for (int i = 0; i < n; ++i) value[i] = from[i];
  return value;
}
inline void store(float* to, Vec value, int n) {
  if (n == kWidth) return store(to, value);
  for (int i = 0; i < n; ++i) to[i] = value[i];
}
inline Vec keep(Vec value, int n) {
  for (int i = n; i < kWidth; ++i) value[i] = 0.0f;
  return value;
}
#endif

inline float sum(Vec value) {
  float lanes[kWidth];
  store(lanes, value);
  for (int half = kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Calls body(i, n) for vectors of n floats from i that cover [0, count); only the last one may be partial.
template <typename Body>
inline void for_vectors(Index count, const Body& body) {
  Index i = 0;
  for (; i + kWidth <= count; i += kWidth) body(i, kWidth);
  if (i < count) body(i, static_cast<int>(count - i));
}

// Calls body(width, i) for vectors that cover [0, count) floats, wide ones first.
template <typename Body>
inline void for_floats(Index count, const Body& body) {
  Index i = 0;
  for (; i + kWidth <= count; i += kWidth) body(std::integral_constant<int, kWidth>(), i);
  if constexpr (kWidth > 4) {
    for (; i + 4 <= count; i += 4) body(std::integral_constant<int, 4>(), i);
  }
  for (; i < count; ++i) body(std::integral_constant<int, 1>(), i);
}

// The width of the vectors that `channels` channels are handled by.
inline int channel_width(Index channels) {
  return channels >= kWidth ? kWidth : channels >= 8 && kWidth == 16 ? 8 : channels >= 4 ? 4 : 1;
}

// Blocks of W channels that cover all; the last one overlaps its neighbour rather than end early.
template <typename Body>
inline void channel_blocks(Index channels, const Body& body) {
  auto blocks = [&](auto width) {
    constexpr int W = decltype(width)::value;
    for (Index first = 0; first < channels; first += W) body(width, std::min(first, channels - W));
  };
  const int width = channel_width(channels);
  if (width == kWidth) return blocks(std::integral_constant<int, kWidth>());
#if defined(__AVX512F__)
  if (width == 8) return blocks(std::integral_constant<int, 8>());
#endif
  if (width == 4) return blocks(std::integral_constant<int, 4>());
  blocks(std::integral_constant<int, 1>());
}

// Calls body(first, size) for as few pieces of [0, count) as hold at most `most` each, of nearly the same size.
template <typename Body>
inline void for_pieces(Index count, Index most, const Body& body) {
  const Index pieces = ceil_div(count, most), wide = ceil_div(count, pieces), wides = count - (wide - 1) * pieces;
  for (Index piece = 0, first = 0; piece < pieces; ++piece) {
    const Index size = piece < wides ? wide : wide - 1;
    body(first, size);
    first += size;
  }
}

// Rows of images are short: libc's copy takes a slow path for some of their lengths.
inline void copy_floats(float* to, const float* from, Index count) {
  for_floats(count, [&](auto width, Index i) { store<width()>(to + i, load<width()>(from + i)); });
}

inline void fill_floats(float* to, float value, Index count) {
  for_floats(count, [&](auto width, Index i) { store<width()>(to + i, Vector<width()>{} + value); });
}

}  // namespace nas
