// Depthwise convolution (one kernel a channel) and its gradients. w is [kh, kw, 1, C].
#pragma once

#include "plan.h"

namespace nas {

inline bool is_depthwise(const Geometry& at, Index channels, Index outputs) {
  return at.groups == channels && channels == outputs && at.members == 1 && channels > 1;
}

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

// `pixels` output pixels of a row, which all see the taps given.
template <int W>
inline void depthwise_row(const float* x, Index x_step, const Seen* taps, Index count, float* y, Index y_step,
                          Index pixels) {
  for_pieces(pixels, kMostDepthwise, [&](Index first, Index size) {
    const auto function = depthwise_of<W>(size, std::make_integer_sequence<int, kMostDepthwise - 1>());
    function(x + first * x_step, x_step, taps, count, y + first * y_step, y_step);
  });
}

// A depthwise correlation, an image at a time.
class Depthwise {
 public:
  Depthwise(const Plan& plan, const Geometry& at, Images in, Images out)
      : plan_(plan), kernel_columns_(at.columns.taps), in_(in), out_(out), reach_(plan_), copy_(wants_copy(plan_, in)) {
    row_floats_ = copy_ ? reach_.columns * in.channels : in.row_floats();
    parts_ = parts_of(plan_, in, copy_);
  }
  Depthwise(const Depthwise&) = delete;  // its parts point into its plan

  Index rows() const { return plan_.phases[0].rows; }

  // The most rows that `rows` should compute at once: their input fits the cache.
  Index band() const {
    Index band = rows();
    while (copy_ && band > 1 && reach_.cut(plan_, 0, band, 0, in_.channels).floats() > kCacheFloats) {
      band = ceil_div(band, 2);
    }
    return band;
  }

  // Rows [first, last) of all phases of the image y from the image x.
  void rows(const float* x, const float* w, Index first, Index last, float* y) const {
    const Index channels = in_.channels;
    const Cut cut = reach_.cut(plan_, first, last, 0, channels);
    const Scratch<float> packed(copy_ ? cut.floats() : 0);
    if (copy_) {
      copy_cut(x, in_, cut, packed);
      x = packed - cut.row * row_floats_ - cut.column * channels;
    }
    const Index x_step = plan_.in_column_step * channels, y_step = plan_.out_column_step * channels;
    std::vector<Seen> taps;
    for (const Part& part : parts_) {
      const Index begin = std::max(first, part.first_row), end = std::min(last, part.last_row);
      const Index count = part.last_column - part.first_column;
      if (begin >= end) continue;
      channel_blocks(channels, [&](auto width, Index channel) {
        taps.clear();
        for (const PartTap& tap : part.taps) {
          taps.push_back({tap.row * row_floats_ + tap.column * channels,
                          w + (tap.kernel_row * kernel_columns_ + tap.kernel_column) * channels + channel});
        }
        for (Index i = begin; i < end; ++i) {
          const float* from = x + i * plan_.in_row_step * row_floats_ + part.first_column * x_step + channel;
          float* to = y + (part.phase->first_row + i * plan_.out_row_step) * out_.row_floats() +
                      part.phase->first_column * channels + part.first_column * y_step + channel;
          depthwise_row<width()>(from, x_step, taps.data(), taps.size(), to, y_step, count);
        }
      });
    }
  }

 private:
  const Plan plan_;
  const Index kernel_columns_;
  const Images in_, out_;
  const Reach reach_;
  const bool copy_;
  Index row_floats_;
  std::vector<Part> parts_;
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
      : plan_(forward_plan(at)), in_(in), out_(out), reach_(plan_), copy_(wants_copy(plan_, in)) {
    const Phase& phase = plan_.phases[0];
    const Index channels = in.channels;
    row_floats_ = copy_ ? reach_.columns * channels : in.row_floats();
    taps_ = phase.taps();
    tap_step_ = at.columns.dilation * channels;
    band_ = out.rows;
    while (copy_ && band_ > 1 && reach_.cut(plan_, 0, band_, 0, channels).floats() > kCacheFloats) {
      band_ = ceil_div(band_, 2);
    }
    lanes_ = channel_width(channels);
    downs_ = segments_of(phase.down, phase.rows, plan_.in_row_step, in.rows, copy_);
    acrosses_ = segments_of(phase.across, phase.columns, plan_.in_column_step, in.columns, copy_);
  }

  Index floats() const { return ceil_div(in_.channels, lanes_) * lanes_ * taps_; }

  // Adds what one image contributes to `sums`, floats() of them.
  void add(const float* x, const float* dy, float* sums) const {
    const Phase& phase = plan_.phases[0];
    const Index channels = in_.channels;
    for (Index first = 0; first < out_.rows; first += band_) {
      const Index last = std::min(out_.rows, first + band_);
      const float* origin = x;
      const Cut cut = reach_.cut(plan_, first, last, 0, channels);
      const Scratch<float> packed(copy_ ? cut.floats() : 0);
      if (copy_) {
        copy_cut(x, in_, cut, packed);
        origin = packed - cut.row * row_floats_ - cut.column * channels;
      }
      for (const Segment& down : downs_) {
        const Index begin = std::max(first, down.first), rows = std::min(last, down.last) - begin;
        if (rows <= 0) continue;
        for (const Segment& across : acrosses_) {
          const float* given = dy + begin * out_.row_floats() + across.first * channels;
          for (std::size_t r = down.first_tap; r < down.last_tap; ++r) {
            for (std::size_t c = across.first_tap; c < across.last_tap; c += 5) {
              const float* from = origin + (begin * plan_.in_row_step + phase.down[r].offset) * row_floats_ +
                                  (across.first * plan_.in_column_step + phase.across[c].offset) * channels;
              float* to = sums + (r * phase.across.size() + c) * lanes_;
              channel_blocks(channels, [&](auto width, Index channel) {
                auto add = [&](auto together) {
                  depthwise_outer<width(), together()>(from + channel, plan_.in_row_step * row_floats_,
                                                       plan_.in_column_step * channels, tap_step_, given + channel,
                                                       out_.row_floats(), channels, rows, across.last - across.first,
                                                       to + ceil_div(channel, width()) * taps_ * width());
                };
                switch (across.last_tap - c) {
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
  const bool copy_;
  Index row_floats_, taps_, tap_step_, band_, lanes_;
  std::vector<Segment> downs_, acrosses_;
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
