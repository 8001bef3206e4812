// A locally connected layer and its gradients.
//
// Every weight meets each image once, so weights are reused over the batch alone: images are turned so that the batch
// lies along vectors, [pixel][image], a block of images at a time, and a weight is one broadcast for all of a block.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "common.h"

namespace nas {

using Lanes = Vector<kWidth>;
constexpr Index kMostVectors = 8;  // of images in a block

// ---- turning arrays ---------------------------------------------------------------------------------------

// Lanes lie in runs of kHalf. a becomes the even runs of both, b the odd runs: those of a, then those of b, in turns.
template <int kHalf>
inline void exchange(Lanes& a, Lanes& b) {
  const Lanes from_a = a, from_b = b;
#if defined(__clang__)
  for (int lane = 0; lane < kWidth; ++lane) {
    a[lane] = lane & kHalf ? from_b[lane - kHalf] : from_a[lane];
    b[lane] = lane & kHalf ? from_b[lane] : from_a[lane + kHalf];
  }
#else  // which makes one instruction of this alone
  typedef int32_t Mask __attribute__((vector_size(kWidth * sizeof(int32_t))));
  Mask even, odd;
  for (int lane = 0; lane < kWidth; ++lane) {
    even[lane] = lane & kHalf ? kWidth + lane - kHalf : lane;
    odd[lane] = lane & kHalf ? kWidth + lane : lane + kHalf;
  }
  a = __builtin_shuffle(from_a, from_b, even);
  b = __builtin_shuffle(from_a, from_b, odd);
#endif
}

// The transpose of a square of floats.
template <int kHalf = kWidth / 2>
inline void transpose(Lanes (&rows)[kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (!(i & kHalf)) exchange<kHalf>(rows[i], rows[i + kHalf]);
  }
  if constexpr (kHalf > 1) transpose<kHalf / 2>(rows);
}

// Lane i of rows[0] becomes the sum over all lanes of rows[i].
template <int kHalf = kWidth / 2>
inline void sum_lanes(Lanes (&rows)[kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i) {
    exchange<kHalf>(rows[i], rows[i + kHalf]);
    rows[i] += rows[i + kHalf];
  }
  if constexpr (kHalf > 1) sum_lanes<kHalf / 2>(rows);
}

// A block of images: `count` of them in `vectors` vectors, lanes beyond the last image being zero.
struct Block {
  Index first, count, vectors;
  Index lanes() const { return vectors * kWidth; }
};

// Calls body(block) for blocks of images of `floats` floats each.
template <typename Body>
inline void image_blocks(Index images, Index floats, const Body& body) {
  constexpr Index kTurnedFloats = 4 * 1024 * 1024;
  const Index most = std::clamp<Index>(kTurnedFloats / (floats * kWidth), 2, kMostVectors) * kWidth;
  const Index blocks = ceil_div(images, most);
  for (Index i = 0, first = 0; i < blocks; ++i) {
    const Index count = std::min(ceil_div(ceil_div(images - first, blocks - i), kWidth) * kWidth, images - first);
    body(Block{first, count, ceil_div(count, kWidth)});
    first += count;
  }
}

// to [floats][lanes] from [images][step], of which `floats` adjacent ones.
inline void turn(const float* from, Index step, Index floats, const Block& block, float* to) {
  for (Index image = 0; image < block.lanes(); image += kWidth, from += kWidth * step, to += kWidth) {
    const Index images = std::clamp<Index>(block.count - image, 0, kWidth);
    if (floats < kWidth) {
      for (Index f = 0; f < floats; ++f) {
        for (Index i = 0; i < kWidth; ++i) to[f * block.lanes() + i] = i < images ? from[i * step + f] : 0.0f;
      }
      continue;
    }
    for (Index f = 0; f < floats; f += kWidth) {
      const Index at = std::min(f, floats - kWidth);
      Lanes rows[kWidth] = {};
      for (Index i = 0; i < images; ++i) rows[i] = load<kWidth>(from + i * step + at);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store<kWidth>(to + (at + i) * block.lanes(), rows[i]);
    }
  }
}

// And back: to [images][step] from [floats][lanes].
inline void turn_back(const float* from, Index floats, const Block& block, float* to, Index step) {
  for (Index image = 0; image < block.count; image += kWidth, from += kWidth, to += kWidth * step) {
    const Index images = std::min<Index>(block.count - image, kWidth);
    if (floats < kWidth) {
      for (Index i = 0; i < images; ++i) {
        for (Index f = 0; f < floats; ++f) to[i * step + f] = from[f * block.lanes() + i];
      }
      continue;
    }
    for (Index f = 0; f < floats; f += kWidth) {
      const Index at = std::min(f, floats - kWidth);
      Lanes rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) rows[i] = load<kWidth>(from + (at + i) * block.lanes());
      transpose(rows);
      for (Index i = 0; i < images; ++i) store<kWidth>(to + i * step + at, rows[i]);
    }
  }
}

// ---- the layer's shape ------------------------------------------------------------------------------------

struct Layer {
  Axis rows, columns;
  Index inputs, outputs;  // channels
  Layer(const Geometry& at, Index inputs, Index outputs)
      : rows(at.rows), columns(at.columns), inputs(inputs), outputs(outputs) {}

  Index windows() const { return rows.output() * columns.output(); }
  Index run() const { return columns.taps * inputs; }  // of adjacent weights and pixels in one row of a window
  Index field() const { return rows.taps * run(); }
  Index window_weights() const { return field() * outputs; }
  // The image as windows see it, padding included.
  Index seen_rows() const { return (rows.output() - 1) * rows.stride + rows.taps; }
  Index seen_row_floats() const { return ((columns.output() - 1) * columns.stride + columns.taps) * inputs; }
  Index seen_floats() const { return seen_rows() * seen_row_floats(); }
};

// Parts of `length` that hold about 128 floats each, `floats` of them to one of its units.
struct Parts {
  Index each, count;
  Parts(Index length, Index floats)
      : each(std::max<Index>(1, std::min(length, ceil_div(128, floats)))),
        count(std::max<Index>(1, ceil_div(length, each))) {}
};

// What windows see of a block of images: [row][column][channel][image].
inline float* turn_images(const Pool& pool, const Layer& layer, const float* x, const Block& block) {
  const Index row_floats = layer.seen_row_floats(), lanes = block.lanes();
  const Index image_row = layer.columns.image * layer.inputs, step = layer.rows.image * image_row;
  const Index left = std::min(layer.columns.before * layer.inputs, row_floats);
  const Index inside = std::min(image_row, row_floats - left);
  const Parts parts(inside, 1);
  float* turned = scratch(kPacked, layer.seen_floats() * lanes);
  parallel(pool, layer.seen_rows() * parts.count, [&](Index task) {
    const Index row = task / parts.count, part = task % parts.count;
    const Index from = row - layer.rows.before;
    float* to = turned + row * row_floats * lanes;
    const bool outside = from < 0 || from >= layer.rows.image;
    if (part == 0) {
      fill_floats(to, 0.0f, (outside ? row_floats : left) * lanes);
      if (!outside) fill_floats(to + (left + inside) * lanes, 0.0f, (row_floats - left - inside) * lanes);
    }
    if (outside) return;
    const Index first = part * parts.each, floats = std::min(parts.each, inside - first);
    turn(x + block.first * step + from * image_row + first, step, floats, block, to + (left + first) * lanes);
  });
  return turned;
}

// dy of a block of images: [window][output][image].
inline float* turn_outputs(const Pool& pool, const Layer& layer, const float* dy, const Block& block) {
  const Index step = layer.windows() * layer.outputs;
  const Parts parts(step, 1);
  float* turned = scratch(kPacked2, step * block.lanes());
  parallel(pool, parts.count, [&](Index part) {
    const Index first = part * parts.each, floats = std::min(parts.each, step - first);
    turn(dy + block.first * step + first, step, floats, block, turned + first * block.lanes());
  });
  return turned;
}

// ---- tiles of sums ----------------------------------------------------------------------------------------

// How many vectors of images a tile of N sums has: they and one more for each vector stay in registers.
template <int N>
constexpr int most_vectors() {
  return std::clamp<int>((kRegisters + 3) / (N + 1), 1, kMostVectors);
}

// Of N = 8, 4, 3, 2, 1 that which suits `left` more sums.
inline Index tile_of(Index left) { return left >= 8 ? 8 : left == 6 ? 3 : std::min<Index>(left, 4); }

// Calls body(std::integral_constant<N>, first) for tiles that cover [0, count).
template <typename Body>
inline void tiles(Index count, const Body& body) {
  for (Index first = 0; first < count; first += tile_of(count - first)) {
    switch (tile_of(count - first)) {
      case 8: body(std::integral_constant<int, 8>(), first); break;
      case 4: body(std::integral_constant<int, 4>(), first); break;
      case 3: body(std::integral_constant<int, 3>(), first); break;
      case 2: body(std::integral_constant<int, 2>(), first); break;
      default: body(std::integral_constant<int, 1>(), first);
    }
  }
}

template <template <int, int> class Tile, int N, typename Task, int... V>
inline void run_tile(Index vectors, const Task& task, Index lane, std::integer_sequence<int, V...>) {
  static constexpr void (*table[])(const Task&, Index) = {Tile<N, V + 1>::run...};
  table[vectors - 1](task, lane);
}

// Calls Tile<N, V>::run(task, first lane) for numbers of vectors V, much the same, that cover `vectors`.
template <template <int, int> class Tile, int N, typename Task>
inline void over_vectors(Index vectors, const Task& task) {
  constexpr auto widths = std::make_integer_sequence<int, most_vectors<N>()>();
  const Index tiles = ceil_div(vectors, most_vectors<N>());
  for (Index tile = 0, first = 0; tile < tiles; ++tile) {
    const Index width = ceil_div(vectors - first, tiles - tile);
    run_tile<Tile, N>(width, task, first * kWidth, widths);
    first += width;
  }
}

// ---- forward ----------------------------------------------------------------------------------------------

struct Field {  // of one window: pixels [rows][run][lanes], weights [rows * run][outputs]
  const float* x;
  Index rows, row_step, run, lanes;
  const float* w;
  Index outputs;
  float* y;  // [N][lanes]
};

template <int N, int V>
struct FieldTile {
  __attribute__((noinline)) static void run(const Field& field, Index lane) {
    Lanes sums[N][V] = {};
    const float* w = field.w;
    for (Index row = 0; row < field.rows; ++row) {
      const float* x = field.x + row * field.row_step + lane;
      for (Index i = 0; i < field.run; ++i, x += field.lanes, w += field.outputs) {
        Lanes pixels[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) pixels[v] = load<kWidth>(x + v * kWidth);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sums[n][v] += pixels[v] * w[n];
        }
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store<kWidth>(field.y + n * field.lanes + lane + v * kWidth, sums[n][v]);
    }
  }
};

// y [images, H', W', O] from x [images, H, W, C] and w [H', W', kh, kw, C, O].
inline void local(const Pool& pool, const Layer& layer, Index images, const float* x, const float* w, float* y) {
  const Index columns = layer.columns.output(), step = layer.windows() * layer.outputs;
  const Parts parts(columns, layer.outputs);
  image_blocks(images, layer.seen_floats(), [&](const Block& block) {
    const Index lanes = block.lanes();
    const float* turned = turn_images(pool, layer, x, block);
    parallel(pool, layer.rows.output() * parts.count, [&](Index task) {
      const Index row = task / parts.count, begin = task % parts.count * parts.each;
      const Index end = std::min(columns, begin + parts.each), first = row * columns + begin;
      float* sums = scratch(kPartial, (end - begin) * layer.outputs * lanes);
      for (Index column = begin; column < end; ++column) {
        const float* window = turned + (row * layer.rows.stride * layer.seen_row_floats() +
                                        column * layer.columns.stride * layer.inputs) * lanes;
        tiles(layer.outputs, [&](auto n, Index output) {
          const Field field{window,
                            layer.rows.taps,
                            layer.seen_row_floats() * lanes,
                            layer.run(),
                            lanes,
                            w + (row * columns + column) * layer.window_weights() + output,
                            layer.outputs,
                            sums + ((column - begin) * layer.outputs + output) * lanes};
          over_vectors<FieldTile, decltype(n)::value>(block.vectors, field);
        });
      }
      turn_back(sums, (end - begin) * layer.outputs, block, y + block.first * step + first * layer.outputs, step);
    });
  });
}

// ---- gradient of the images -------------------------------------------------------------------------------

// Windows above one another that see N adjacent floats of one row of pixels: each has weights [N][outputs] for them and
// gradients [outputs][lanes]; from one window to the next both are a step further.
struct Seers {
  Index count, outputs, lanes;
  const float* w;
  Index w_step;
  const float* dy;
  Index dy_step;
  float* dx;  // [N][lanes], added to
};

template <int N, int V>
struct SeersTile {
  __attribute__((noinline)) static void run(const Seers& seers, Index lane) {
    Lanes sums[N][V] = {};
    for (Index window = 0; window < seers.count; ++window) {
      const float* w = seers.w + window * seers.w_step;
      const float* dy = seers.dy + window * seers.dy_step + lane;
      for (Index output = 0; output < seers.outputs; ++output, ++w, dy += seers.lanes) {
        Lanes gradients[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) gradients[v] = load<kWidth>(dy + v * kWidth);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sums[n][v] += gradients[v] * w[n * seers.outputs];
        }
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        float* dx = seers.dx + n * seers.lanes + lane + v * kWidth;
        store<kWidth>(dx, load<kWidth>(dx) + sums[n][v]);
      }
    }
  }
};

struct Seeing {  // windows [first, last) along an axis see one of pixels [begin, end)
  Index first, last;
  Seeing(const Axis& axis, Index begin, Index end)
      : first(std::max<Index>(0, ceil_div(begin + axis.before - axis.taps + 1, axis.stride))),
        last(std::min(axis.output(), (end - 1 + axis.before) / axis.stride + 1)) {}
};

// dx [images, H, W, C] from dy [images, H', W', O] and w [H', W', kh, kw, C, O].
inline void local_dx(const Pool& pool, const Layer& layer, Index images, const float* dy, const float* w, float* dx) {
  const Axis &down = layer.rows, &along = layer.columns;
  const Index across = along.output(), inputs = layer.inputs, outputs = layer.outputs;
  const Index step = down.image * along.image * inputs;
  const Parts parts(along.image, inputs);
  image_blocks(images, layer.windows() * outputs, [&](const Block& block) {
    const Index lanes = block.lanes();
    const float* turned = turn_outputs(pool, layer, dy, block);
    parallel(pool, down.image * parts.count, [&](Index task) {
      const Index row = task / parts.count, begin = task % parts.count * parts.each;
      const Index end = std::min(along.image, begin + parts.each);
      const Seeing rows(down, row, row + 1), columns(along, begin, end);
      float* sums = scratch(kPartial, (end - begin) * inputs * lanes);
      fill_floats(sums, 0.0f, (end - begin) * inputs * lanes);
      for (Index column = columns.first; column < columns.last && rows.first < rows.last; ++column) {
        const Index window = rows.first * across + column;
        const Index pixel = column * along.stride - along.before;  // that its first tap sees
        const Index first = std::max<Index>(0, begin - pixel), last = std::min(along.taps, end - pixel);
        const Index weights = (row + down.before - rows.first * down.stride) * along.taps + first;
        tiles((last - first) * inputs, [&](auto n, Index i) {
          const Seers seers{rows.last - rows.first,
                            outputs,
                            lanes,
                            w + window * layer.window_weights() + (weights * inputs + i) * outputs,
                            across * layer.window_weights() - down.stride * layer.run() * outputs,
                            turned + window * outputs * lanes,
                            across * outputs * lanes,
                            sums + ((pixel + first - begin) * inputs + i) * lanes};
          over_vectors<SeersTile, decltype(n)::value>(block.vectors, seers);
        });
      }
      const Index at = (row * along.image + begin) * inputs;
      turn_back(sums, (end - begin) * inputs, block, dx + block.first * step + at, step);
    });
  });
}

// ---- gradient of the weights ------------------------------------------------------------------------------

// N pixels of a window times kWidth / N outputs: x at `offsets`, dy [outputs][lanes], the sums over images to `to`.
template <int N>
inline Lanes products(const float* x, const Index* offsets, const float* dy, Index lanes) {
  constexpr int kOutputs = kWidth / N;
  Lanes sums[kWidth] = {};
  const float* pixels[N];
  for (int n = 0; n < N; ++n) pixels[n] = x + offsets[n];
  for (Index lane = 0; lane < lanes; lane += kWidth) {
    Lanes gradients[kOutputs];
#pragma GCC unroll 16
    for (int o = 0; o < kOutputs; ++o) gradients[o] = load<kWidth>(dy + o * lanes + lane);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const Lanes pixel = load<kWidth>(pixels[n] + lane);
#pragma GCC unroll 16
      for (int o = 0; o < kOutputs; ++o) sums[n * kOutputs + o] += pixel * gradients[o];
    }
  }
  sum_lanes(sums);
  return sums[0];
}

// kOutputs outputs of a window's weight gradient [field][outputs]; `offsets` repeats its last beyond `field`.
template <int kOutputs>
__attribute__((noinline)) void window_gradient(const Layer& layer, const float* x, const Index* offsets,
                                               const float* dy, Index lanes, bool fresh, float* dw) {
  constexpr int kPixels = kWidth / kOutputs;
  const Index field = layer.field();
  for (Index k = 0; k < field; k += kPixels) {
    Lanes found = products<kPixels>(x, offsets + k, dy, lanes);
    float* to = dw + k * layer.outputs;
    if (layer.outputs == kOutputs && k + kPixels <= field) {
      store<kWidth>(to, fresh ? found : found + load<kWidth>(to));
      continue;
    }
    float sums[kWidth];
    store<kWidth>(sums, found);
    for (Index n = 0; n < std::min<Index>(kPixels, field - k); ++n, to += layer.outputs) {
      for (int o = 0; o < kOutputs; ++o) to[o] = sums[n * kOutputs + o] + (fresh ? 0.0f : to[o]);
    }
  }
}

inline void local_dw(const Pool& pool, const Layer& layer, Index images, const float* x, const float* dy, float* dw) {
  const Index columns = layer.columns.output();
  std::vector<Index> pixels;  // where in what windows see the pixels of a window are
  for (Index row = 0; row < layer.rows.taps; ++row) {
    for (Index i = 0; i < layer.run(); ++i) pixels.push_back(row * layer.seen_row_floats() + i);
  }
  pixels.resize(pixels.size() + kWidth, pixels.back());
  image_blocks(images, layer.seen_floats(), [&](const Block& block) {
    const Index lanes = block.lanes();
    std::vector<Index> offsets(pixels);
    for (Index& offset : offsets) offset *= lanes;
    const float* turned = turn_images(pool, layer, x, block);
    const float* gradients = turn_outputs(pool, layer, dy, block);
    parallel(pool, layer.windows(), [&](Index window) {
      const float* seen = turned + (window / columns * layer.rows.stride * layer.seen_row_floats() +
                                    window % columns * layer.columns.stride * layer.inputs) * lanes;
      const float* given = gradients + window * layer.outputs * lanes;
      float* to = dw + window * layer.window_weights();
      for (Index o = 0; o < layer.outputs;) {
        const Index left = layer.outputs - o;
        const auto gradient = left >= 4 ? window_gradient<4> : left >= 2 ? window_gradient<2> : window_gradient<1>;
        gradient(layer, seen, offsets.data(), given + o * lanes, lanes, block.first == 0, to + o);
        o += left >= 4 ? 4 : left >= 2 ? 2 : 1;
      }
    });
  });
}

}  // namespace nas
