// Depthwise convolution (one kernel a channel) and its gradients. w is [kh, kw, 1, C].
#pragma once

#include "common.h"
#include "correlate.h"

namespace nas {

// An image as the kernels read it: in place, taps that fall outside left out, or as a copy with zeros around it,
// where all taps count. A copy costs a pass over memory, and pays where most windows hang over an edge.
inline bool wants_copy(const Plan& plan, const Images& in) {
  const Phase& phase = plan.phases[0];
  if (phase.taps() == 0) return false;
  const Index before = std::max<Index>(0, -phase.across[0].offset);
  const Index after =
      std::max<Index>(0, (phase.columns - 1) * plan.in_column_step + phase.across.back().offset + 1 - in.columns);
  return 2 * ceil_div(before + after, plan.in_column_step) > phase.columns;
}

// A tap that some windows see: where, from the window's origin, and its weights.
struct Seen {
  Index offset;
  const float* weights;
};

template <int W, int P>
__attribute__((noinline)) void depthwise_tile(const float* x, Index x_step, const Seen* taps, Index count, float* y,
                                              Index y_step) {
  Vector<W> sums[P] = {};
  constexpr int kBases = (P + 2) / 3;
  for (Index tap = 0; tap < count; ++tap) {
    const Vector<W> weight = load<W>(taps[tap].weights);
    const float* base = x + taps[tap].offset;
#pragma GCC unroll 16
    for (int b = 0; b < kBases; ++b, base += 3 * x_step) {
      asm volatile("" : "+r"(base));
#pragma GCC unroll 3
      for (int p = 0; p < 3; ++p) {
        if (3 * b + p < P) sums[3 * b + p] += weight * load<W>(base + p * x_step);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) store<W>(y + p * y_step, sums[p]);
}

// One pixel, in two chains: one alone would wait for each addition.
template <int W>
__attribute__((noinline)) void depthwise_pixel(const float* x, Index, const Seen* taps, Index count, float* y, Index) {
  Vector<W> even = {}, odd = {};
  Index tap = 0;
  for (; tap + 2 <= count; tap += 2) {
    even += load<W>(taps[tap].weights) * load<W>(x + taps[tap].offset);
    odd += load<W>(taps[tap + 1].weights) * load<W>(x + taps[tap + 1].offset);
  }
  if (tap < count) even += load<W>(taps[tap].weights) * load<W>(x + taps[tap].offset);
  store<W>(y, even + odd);
}

using DepthwiseFunction = void (*)(const float*, Index, const Seen*, Index, float*, Index);

constexpr Index kMostDepthwise = 8;

template <int W, int... P>
DepthwiseFunction depthwise_of(Index pixels, std::integer_sequence<int, P...>) {
  static constexpr DepthwiseFunction table[] = {depthwise_pixel<W>, depthwise_tile<W, P + 2>...};
  return table[pixels - 1];
}

// `pixels` output pixels of a row, which all see the taps given, in tiles of nearly the same size.
template <int W>
inline void depthwise_row(const float* x, Index x_step, const Seen* taps, Index count, float* y, Index y_step,
                          Index pixels) {
  const Index tiles = ceil_div(pixels, kMostDepthwise), wide = ceil_div(pixels, tiles);
  const auto others = std::make_integer_sequence<int, kMostDepthwise - 1>();
  for (Index tile = 0; tile < tiles; ++tile) {
    const Index size = tile < pixels - (wide - 1) * tiles ? wide : wide - 1;
    depthwise_of<W>(size, others)(x, x_step, taps, count, y, y_step);
    x += size * x_step;
    y += size * y_step;
  }
}

inline void depthwise(const Pool& pool, const Plan& plan, const Geometry& at, const float* x, Images in, const float* w,
                      float* y, Images out) {
  const Index channels = in.channels;
  const Reach reach(plan);
  const bool copy = wants_copy(plan, in);
  const Index row_floats = copy ? reach.columns * channels : in.row_floats();
  const Index rows = plan.phases[0].rows;
  Index band = rows;
  while (copy && band > 1 && reach.cut(plan, 0, band, 0, channels).floats() > kCacheFloats) band = ceil_div(band, 2);
  while (band > 2 && in.count * ceil_div(rows, band) < 4 * pool.size()) band = ceil_div(band, 2);
  const Index bands = ceil_div(rows, band);

  const std::vector<Part> parts = parts_of(plan, in, copy);
  auto seen_by = [&](const Part& part, std::vector<Seen>& taps, Index channel) {
    taps.clear();
    for (const PartTap& tap : part.taps) {
      taps.push_back({tap.row * row_floats + tap.column * channels,
                      w + (tap.kernel_row * at.columns.taps + tap.kernel_column) * channels + channel});
    }
  };

  parallel(pool, in.count * bands, [&](Index unit) {
    const Index image = unit / bands, first = unit % bands * band, last = std::min(rows, first + band);
    const float* origin = x + image * in.image_floats();
    if (copy) {
      const Cut cut = reach.cut(plan, first, last, 0, channels);
      float* packed = scratch(kPacked, cut.floats());
      copy_cut(origin, in, cut, packed);
      origin = packed - cut.row * row_floats - cut.column * channels;
    }
    const Index x_step = plan.in_column_step * channels, y_step = plan.out_column_step * channels;
    std::vector<Seen> taps;
    for (const Part& part : parts) {
      const Index begin = std::max(first, part.first_row), end = std::min(last, part.last_row);
      const Index count = part.last_column - part.first_column;
      if (begin >= end) continue;
      channel_blocks(channels, [&](auto width, Index channel) {
        seen_by(part, taps, channel);
        for (Index i = begin; i < end; ++i) {
          const float* from = origin + i * plan.in_row_step * row_floats + part.first_column * x_step + channel;
          float* to = y + image * out.image_floats() +
                      (part.phase->first_row + i * plan.out_row_step) * out.row_floats() +
                      part.phase->first_column * channels + part.first_column * y_step + channel;
          depthwise_row<width()>(from, x_step, taps.data(), taps.size(), to, y_step, count);
        }
      });
    }
  });
}

// Adds to `sums` [T][W] the products of dy and what T taps in one kernel row see, over the pixels given.
template <int W, int T>
inline void depthwise_outer(const float* x, Index x_row, Index x_column, Index tap_step, const float* dy, Index dy_row,
                            Index channels, Index rows, Index columns, float* sums) {
  Vector<W> even[T] = {}, odd[T] = {};  // two chains hide the latency of an addition
  for (Index row = 0; row < rows; ++row) {
    const float* from = x + row * x_row;
    const float* given = dy + row * dy_row;
    Index column = 0;
    for (; column + 2 <= columns; column += 2) {
      const Vector<W> first = load<W>(given), second = load<W>(given + channels);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        even[t] += first * load<W>(from + t * tap_step);
        odd[t] += second * load<W>(from + t * tap_step + x_column);
      }
      from += 2 * x_column;
      given += 2 * channels;
    }
    if (column < columns) {
      const Vector<W> first = load<W>(given);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) even[t] += first * load<W>(from + t * tap_step);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) store<W>(sums + t * W, load<W>(sums + t * W) + even[t] + odd[t]);
}

inline void depthwise_dw(const Pool& pool, const Geometry& at, const float* x, Images in, const float* dy, Images out,
                         float* dw) {
  const Index channels = in.channels;
  const Plan plan = forward_plan(at);
  const Phase& phase = plan.phases[0];
  const Reach reach(plan);
  const bool copy = wants_copy(plan, in);
  const Index row_floats = copy ? reach.columns * channels : in.row_floats();
  const Index taps = phase.taps();
  const Index chunks = std::min<Index>(in.count, 16);  // fixed: the order of additions depends on shapes alone
  Index band = out.rows;
  while (copy && band > 1 && reach.cut(plan, 0, band, 0, channels).floats() > kCacheFloats) band = ceil_div(band, 2);

  // Sums are kept a block of W channels at a time, [block][tap][W]; the last block may overlap the one before.
  const Index lanes = channels >= kWidth ? kWidth : channels >= 8 && kWidth == 16 ? 8 : channels >= 4 ? 4 : 1;
  const Index part_floats = ceil_div(channels, lanes) * lanes * taps;
  float* parts = scratch(kPartial, chunks * part_floats);

  const auto downs = segments_of(phase.down, phase.rows, plan.in_row_step, in.rows, copy);
  const auto acrosses = segments_of(phase.across, phase.columns, plan.in_column_step, in.columns, copy);
  const Index tap_step = at.columns.dilation * channels;

  parallel(pool, chunks, [&](Index chunk) {
    float* part = parts + chunk * part_floats;
    fill_floats(part, 0.0f, part_floats);
    for (Index image = in.count * chunk / chunks; image < in.count * (chunk + 1) / chunks; ++image) {
      for (Index first = 0; first < out.rows; first += band) {
        const Index last = std::min(out.rows, first + band);
        const float* origin = x + image * in.image_floats();
        if (copy) {
          const Cut cut = reach.cut(plan, first, last, 0, channels);
          float* packed = scratch(kPacked, cut.floats());
          copy_cut(origin, in, cut, packed);
          origin = packed - cut.row * row_floats - cut.column * channels;
        }
        for (const Segment& down : downs) {
          const Index begin = std::max(first, down.first), rows = std::min(last, down.last) - begin;
          if (rows <= 0) continue;
          for (const Segment& across : acrosses) {
            const float* given = dy + image * out.image_floats() + begin * out.row_floats() + across.first * channels;
            for (std::size_t r = down.first_tap; r < down.last_tap; ++r) {
              for (std::size_t c = across.first_tap; c < across.last_tap; c += 5) {
                const float* from = origin + (begin * plan.in_row_step + phase.down[r].offset) * row_floats +
                                    (across.first * plan.in_column_step + phase.across[c].offset) * channels;
                float* sums = part + r * phase.across.size() * lanes + c * lanes;
                channel_blocks(channels, [&](auto width, Index channel) {
                  auto add = [&](auto together) {
                    depthwise_outer<width(), together()>(from + channel, plan.in_row_step * row_floats,
                                                         plan.in_column_step * channels, tap_step, given + channel,
                                                         out.row_floats(), channels, rows, across.last - across.first,
                                                         sums + ceil_div(channel, width()) * taps * width());
                  };
                  switch (across.last_tap - c) {
                    case 1:
                      return add(std::integral_constant<int, 1>());
                    case 2:
                      return add(std::integral_constant<int, 2>());
                    case 3:
                      return add(std::integral_constant<int, 3>());
                    case 4:
                      return add(std::integral_constant<int, 4>());
                    default:
                      return add(std::integral_constant<int, 5>());
                  }
                });
              }
            }
          }
        }
      }
    }
  });
  for (Index c = 0; c < channels; ++c) {
    const Index block = c / lanes, lane = c - std::min(block * lanes, channels - lanes);
    for (Index tap = 0; tap < taps; ++tap) {
      float sum = 0;
      for (Index chunk = 0; chunk < chunks; ++chunk) {
        sum += parts[chunk * part_floats + (block * taps + tap) * lanes + lane];
      }
      dw[tap * channels + c] = sum;
    }
  }
}

}  // namespace nas
