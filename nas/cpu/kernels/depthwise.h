// Depthwise convolution (one kernel a channel) and its gradients. w is [kh, kw, 1, C].
#pragma once

#include "plan.h"

namespace nas {

inline bool is_depthwise(const Geometry& at, Index channels, Index outputs) {
  return at.groups == channels && channels == outputs && at.members == 1 && channels > 1;
}

// A tap of a window: where, from the window's origin, and its weights.
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

// `pixels` output pixels of a row, which all see the taps given.
template <int W>
inline void depthwise_row(const float* x, Index x_step, const Seen* taps, Index count, float* y, Index y_step,
                          Index pixels) {
  for_pieces(pixels, kMostDepthwise, [&](Index first, Index size) {
    const auto function = depthwise_of<W>(size, std::make_integer_sequence<int, kMostDepthwise - 1>());
    function(x + first * x_step, x_step, taps, count, y + first * y_step, y_step);
  });
}

// The most rows of a plan's phases whose input, copied with zeros around it, fits the cache.
inline Index band_of(const Plan& plan, const Reach& reach, Index channels) {
  Index band = plan.phases[0].rows;
  while (band > 1 && reach.cut(plan, 0, band, 0, channels).floats() > kCacheFloats) band = ceil_div(band, 2);
  return band;
}

// A depthwise correlation, an image at a time. It reads a copy of the image with zeros around it: all windows then see
// all taps, which is worth more than the pass over memory even where few windows hang over an edge.
class Depthwise {
 public:
  Depthwise(const Plan& plan, const Geometry& at, Images in, Images out)
      : plan_(plan), kernel_columns_(at.columns.taps), in_(in), out_(out), reach_(plan_) {}

  Index rows() const { return plan_.phases[0].rows; }

  // The most rows that `rows` should compute at once.
  Index band() const { return band_of(plan_, reach_, in_.channels); }

  // Rows [first, last) of all phases of the image y from the image x.
  void rows(const float* x, const float* w, Index first, Index last, float* y) const {
    const Index channels = in_.channels;
    const Cut cut = reach_.cut(plan_, first, last, 0, channels);
    const Scratch<float> packed(cut.floats());
    copy_cut(x, in_, cut, packed);
    const float* origin = packed - cut.row * cut.row_floats() - cut.column * channels;
    const Index x_step = plan_.in_column_step * channels, y_step = plan_.out_column_step * channels;
    std::vector<Seen> taps;
    for (const Phase& phase : plan_.phases) {
      channel_blocks(channels, [&](auto width, Index channel) {
        taps.clear();
        for (const Tap& row : phase.down) {
          for (const Tap& column : phase.across) {
            taps.push_back({row.offset * cut.row_floats() + column.offset * channels,
                            w + (row.index * kernel_columns_ + column.index) * channels + channel});
          }
        }
        for (Index i = first; i < std::min(last, phase.rows); ++i) {
          const float* from = origin + i * plan_.in_row_step * cut.row_floats() + channel;
          float* to = y + (phase.first_row + i * plan_.out_row_step) * out_.row_floats() +
                      phase.first_column * channels + channel;
          depthwise_row<width()>(from, x_step, taps.data(), taps.size(), to, y_step, phase.columns);
        }
      });
    }
  }

 private:
  const Plan plan_;
  const Index kernel_columns_;
  const Images in_, out_;
  const Reach reach_;
};

inline void depthwise(const Pool& pool, const Plan& plan, const Geometry& at, const float* x, const Images& in,
                      const float* w, float* y, const Images& out) {
  const Depthwise image_of(plan, at, in, out);
  const Index rows = image_of.rows();
  Index band = image_of.band();
  while (band > 2 && in.count * ceil_div(rows, band) < 4 * pool.size()) band = ceil_div(band, 2);
  const Index bands = ceil_div(rows, band);
  parallel(pool, in.count * bands, [&](Index unit) {
    const Index image = unit / bands, first = unit % bands * band;
    const Index last = std::min(rows, first + band);
    image_of.rows(x + image * in.image_floats(), w, first, last, y + image * out.image_floats());
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

// The weight gradient of a depthwise convolution, added up an image at a time. Sums are kept a block of W channels at a
// time, [block][tap][W]; the last block may overlap the one before.
class DepthwiseWeights {
 public:
  DepthwiseWeights(const Geometry& at, Images in, Images out)
      : plan_(forward_plan(at)), in_(in), out_(out), reach_(plan_), taps_(plan_.phases[0].taps()),
        tap_step_(at.columns.dilation * in.channels), lanes_(channel_width(in.channels)) {}

  Index floats() const { return ceil_div(in_.channels, lanes_) * lanes_ * taps_; }

  // Adds what one image contributes to `sums`, floats() of them.
  void add(const float* x, const float* dy, float* sums) const {
    const Phase& phase = plan_.phases[0];
    const Index channels = in_.channels, band = band_of(plan_, reach_, channels);
    for (Index first = 0; first < out_.rows; first += band) {
      const Index last = std::min(out_.rows, first + band);
      const Cut cut = reach_.cut(plan_, first, last, 0, channels);
      const Scratch<float> packed(cut.floats());
      copy_cut(x, in_, cut, packed);
      const float* origin = packed - cut.row * cut.row_floats() - cut.column * channels;
      const float* given = dy + first * out_.row_floats();
      for (std::size_t r = 0; r < phase.down.size(); ++r) {
        for (std::size_t c = 0; c < phase.across.size(); c += 5) {
          const float* from = origin + (first * plan_.in_row_step + phase.down[r].offset) * cut.row_floats() +
                              phase.across[c].offset * channels;
          float* to = sums + (r * phase.across.size() + c) * lanes_;
          channel_blocks(channels, [&](auto width, Index channel) {
            auto add = [&](auto together) {
              depthwise_outer<width(), together()>(from + channel, plan_.in_row_step * cut.row_floats(),
                                                   plan_.in_column_step * channels, tap_step_, given + channel,
                                                   out_.row_floats(), channels, last - first, out_.columns,
                                                   to + ceil_div(channel, width()) * taps_ * width());
            };
            switch (phase.across.size() - c) {
              case 1: return add(std::integral_constant<int, 1>());
              case 2: return add(std::integral_constant<int, 2>());
              case 3: return add(std::integral_constant<int, 3>());
              case 4: return add(std::integral_constant<int, 4>());
              default: return add(std::integral_constant<int, 5>());
            }
          });
        }
      }
    }
  }

  // The gradient from the sums of `count` chunks of the images, `stride` floats apart.
  void join(const float* sums, Index count, Index stride, float* dw) const {
    const Index channels = in_.channels;
    for (Index c = 0; c < channels; ++c) {
      const Index block = c / lanes_, lane = c - std::min(block * lanes_, channels - lanes_);
      for (Index tap = 0; tap < taps_; ++tap) {
        float sum = 0;
        const float* from = sums + (block * taps_ + tap) * lanes_ + lane;
        for (Index chunk = 0; chunk < count; ++chunk) sum += from[chunk * stride];
        dw[tap * channels + c] = sum;
      }
    }
  }

 private:
  const Plan plan_;
  const Images in_, out_;
  const Reach reach_;
  const Index taps_, tap_step_, lanes_;
};

// Partial sums over so many chunks of the images: fixed, so that the order of additions depends on shapes alone.
inline Index chunks_of(Index images) { return std::min<Index>(images, 16); }

inline void depthwise_dw(const Pool& pool, const Geometry& at, const float* x, const Images& in, const float* dy,
                         const Images& out, float* dw) {
  const DepthwiseWeights gradient(at, in, out);
  const Index chunks = chunks_of(in.count), floats = gradient.floats();
  const Scratch<float> sums(chunks * floats);
  parallel(pool, chunks, [&](Index chunk) {
    float* mine = sums + chunk * floats;
    fill_floats(mine, 0.0f, floats);
    for (Index image = in.count * chunk / chunks; image < in.count * (chunk + 1) / chunks; ++image) {
      gradient.add(x + image * in.image_floats(), dy + image * out.image_floats(), mine);
    }
  });
  gradient.join(sums, chunks, floats, dw);
}

}  // namespace nas
