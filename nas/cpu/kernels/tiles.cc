#include "tiles.h"

#include <utility>

namespace nas {
namespace {

// P pixels of one output row times V vectors of output channels, as multiply() says.
template <int W, int V, int P>
void tile(const float* x, Index x_step, const Index* runs, Index run_count, Index length, const float* w, float* y,
          Index y_step, int lanes) {
  Vector<W> sums[P][V] = {};
  constexpr int kBases = (P + 2) / 3;  // base + {0, 1, 2} * step are addressing modes; more would spill pointers
  for (Index run = 0; run < run_count; ++run) {
    const float* base[kBases];
#pragma GCC unroll 16
    for (int b = 0; b < kBases; ++b) base[b] = x + runs[run] + 3 * b * x_step;
    for (Index i = 0; i < length; ++i) {
#pragma GCC unroll 16
      for (int b = 0; b < kBases; ++b) asm volatile("" : "+r"(base[b]));  // keeps the compiler from re-deriving them
      Vector<W> weight[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) weight[v] = load<W>(w + v * W);
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p) {
        const float value = base[p / 3][(p % 3) * x_step];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[p][v] += weight[v] * value;
      }
#pragma GCC unroll 16
      for (int b = 0; b < kBases; ++b) ++base[b];
      w += V * W;
    }
  }
  if (lanes == W) {
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store<W>(y + p * y_step + v * W, sums[p][v]);
    }
  } else {
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < V - 1; ++v) store<W>(y + p * y_step + v * W, sums[p][v]);
      store_lanes<W>(y + p * y_step + (V - 1) * W, sums[p][V - 1], lanes);
    }
  }
}

// Adds the outer products of T adjacent floats of x and V vectors of dy, as outer_products() says.
template <int W, int V, int T>
void outer(const float* x, Steps x_step, const float* dy, Steps dy_step, Steps count, float* to, Index stride,
           bool fresh) {
  Vector<W> sums[T][V] = {};
  for (Index image = 0; image < count.image; ++image) {
    for (Index row = 0; row < count.row; ++row) {
      const float* from = x + image * x_step.image + row * x_step.row;
      const float* given = dy + image * dy_step.image + row * dy_step.row;
      for (Index column = 0; column < count.column; ++column) {
        Vector<W> gradient[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) gradient[v] = load<W>(given + v * W);
#pragma GCC unroll 32
        for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sums[t][v] += gradient[v] * from[t];
        }
        from += x_step.column;
        given += dy_step.column;
      }
    }
  }
#pragma GCC unroll 32
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      float* at = to + t * stride + v * W;
      store<W>(at, fresh ? sums[t][v] : load<W>(at) + sums[t][v]);
    }
  }
}

// Each tile takes time to compile: narrow ones, for few channels, come in fewer sizes.
template <int W, int V>
constexpr int most_pixels() {
  return std::min(kRegisters / V, W < kWidth ? 8 : V == 1 ? 16 : 14);
}
template <int W, int V>
constexpr int most_taps() {
  return std::min(kRegisters / V, W < kWidth ? 9 : V == 1 ? 24 : 14);
}

template <int W, int V, int... P>
auto tile_of(Index pixels, std::integer_sequence<int, P...>) {
  static constexpr decltype(&tile<W, V, 1>) table[] = {tile<W, V, P + 1>...};
  return table[pixels - 1];
}
template <int W, int V, int... T>
auto outer_of(Index taps, std::integer_sequence<int, T...>) {
  static constexpr decltype(&outer<W, V, 1>) table[] = {outer<W, V, T + 1>...};
  return table[taps - 1];
}

// Calls body(width, vectors) with a panel's, as constants.
template <typename Body>
void with_sizes(const Panel& panel, const Body& body) {
  const std::integral_constant<int, kWidth> wide;
  const std::integral_constant<int, 1> one;
  if (panel.vectors == 3) return body(wide, std::integral_constant<int, 3>());
  if (panel.vectors == 2) return body(wide, std::integral_constant<int, 2>());
  if (panel.width == kWidth) return body(wide, one);
  if constexpr (kWidth == 16) {
    if (panel.width == 8) return body(std::integral_constant<int, 8>(), one);
  }
  body(std::integral_constant<int, 4>(), one);
}

}  // namespace

void multiply(const Panel& panel, Index pixels, const float* x, Index x_step, const Index* runs, Index run_count,
              Index length, const float* w, float* y, Index y_step, int lanes) {
  with_sizes(panel, [&](auto width, auto vectors) {
    constexpr int W = decltype(width)::value, V = decltype(vectors)::value, most = most_pixels<W, V>();
    for_pieces(pixels, most, [&](Index first, Index count) {
      const auto function = tile_of<W, V>(count, std::make_integer_sequence<int, most>());
      function(x + first * x_step, x_step, runs, run_count, length, w, y + first * y_step, y_step, lanes);
    });
  });
}

void outer_products(const Panel& panel, Index length, const float* x, Steps x_step, const float* dy, Steps dy_step,
                    Steps count, float* sums, Index stride, bool fresh) {
  with_sizes(panel, [&](auto width, auto vectors) {
    constexpr int W = decltype(width)::value, V = decltype(vectors)::value, most = most_taps<W, V>();
    for_pieces(length, most, [&](Index first, Index taps) {
      const auto function = outer_of<W, V>(taps, std::make_integer_sequence<int, most>());
      function(x + first, x_step, dy + panel.first, dy_step, count, sums + first * stride + panel.first, stride, fresh);
    });
  });
}

}  // namespace nas
