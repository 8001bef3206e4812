// A convolution and its input gradient, both as one correlation of an input with a packed kernel.
//
// The forward pass correlates x. The input gradient correlates dy with the kernel flipped and its channels
// swapped; with stride s the pixels of dx fall into s*s phases, each a correlation with some of the taps.
#pragma once

#include "common.h"

namespace nas {

// Along one axis: the input pixel that a kernel tap sees, from the window's origin.
struct Tap {
  Index offset, index;
};

// Output pixels (first_row + i * step, first_column + j * step) for i < rows, j < columns.
struct Phase {
  Index first_row, first_column, rows, columns;
  std::vector<Tap> down, across;  // every pair of them is a tap; offsets ascend
  Index taps() const { return down.size() * across.size(); }
};

// The output pixel (i, j) of a phase reads input pixels (i * in_row_step + down, j * in_column_step + across).
struct Plan {
  Index in_row_step, in_column_step, out_row_step, out_column_step;
  bool swapped;  // input channels are the kernel's last axis
  std::vector<Phase> phases;
};

inline Plan forward_plan(const Geometry& at) {
  auto taps_of = [](const Axis& axis) {
    std::vector<Tap> taps;
    for (Index tap = 0; tap < axis.taps; ++tap) taps.push_back({tap * axis.dilation - axis.before, tap});
    return taps;
  };
  Phase all{0, 0, at.rows.output(), at.columns.output(), taps_of(at.rows), taps_of(at.columns)};
  return {at.rows.stride, at.columns.stride, 1, 1, false, {all}};
}

inline Plan gradient_plan(const Geometry& at) {
  // Window `out` reads pixel out * stride + tap * dilation - before, so pixel `phase + i * stride` is read by
  // windows out = i + (phase + before - tap * dilation) / stride, where that divides.
  auto taps_of = [](const Axis& axis, Index phase) {
    std::vector<Tap> taps;
    for (Index tap = axis.taps - 1; tap >= 0; --tap) {
      const Index reach = phase + axis.before - tap * axis.dilation;
      if (reach % axis.stride == 0) taps.push_back({reach / axis.stride, tap});
    }
    return taps;
  };
  const Axis &rows = at.rows, &columns = at.columns;
  Plan plan{1, 1, rows.stride, columns.stride, true, {}};
  for (Index r = 0; r < std::min(rows.stride, rows.image); ++r) {
    for (Index c = 0; c < std::min(columns.stride, columns.image); ++c) {
      plan.phases.push_back({r, c, ceil_div(rows.image - r, rows.stride), ceil_div(columns.image - c, columns.stride),
                             taps_of(rows, r), taps_of(columns, c)});
    }
  }
  return plan;
}

// How far the taps of a plan reach: the cut of the input that output rows [first, last) of all phases need.
struct Reach {
  Index low_row = 0, high_row = 0, low_column = 0, columns = 1;

  explicit Reach(const Plan& plan) {
    Index high_column = 0;
    bool any = false;
    for (const Phase& phase : plan.phases) {
      if (phase.taps() == 0) continue;
      const Index right = (phase.columns - 1) * plan.in_column_step + phase.across.back().offset;
      low_row = any ? std::min(low_row, phase.down[0].offset) : phase.down[0].offset;
      high_row = any ? std::max(high_row, phase.down.back().offset) : phase.down.back().offset;
      low_column = any ? std::min(low_column, phase.across[0].offset) : phase.across[0].offset;
      high_column = any ? std::max(high_column, right) : right;
      any = true;
    }
    columns = high_column - low_column + 1;
  }

  Cut cut(const Plan& plan, Index first, Index last, Index channel, Index channels) const {
    const Index row = first * plan.in_row_step + low_row;
    return {row, (last - 1) * plan.in_row_step + high_row - row + 1, low_column, columns, channel, channels};
  }

  bool inside(const Cut& cut, const Images& image) const {
    return cut.row >= 0 && cut.row + cut.rows <= image.rows && cut.column >= 0 &&
           cut.column + cut.columns <= image.columns;
  }
};

// Windows [first, last) of an axis that see the same taps [first_tap, last_tap).
struct Segment {
  Index first, last;
  std::size_t first_tap, last_tap;
};

// The segments of `windows` windows on an axis of `size` pixels; one of all taps where the image is a copy.
inline std::vector<Segment> segments_of(const std::vector<Tap>& taps, Index windows, Index step, Index size,
                                        bool copy) {
  if (copy || taps.empty()) return {{0, windows, 0, taps.size()}};
  auto sees = [&](Index window, const Tap& tap) {
    const Index pixel = window * step + tap.offset;
    return pixel >= 0 && pixel < size;
  };
  std::vector<Segment> segments;
  for (Index window = 0; window < windows; ++window) {
    std::size_t first = 0, last = taps.size();
    while (first < last && !sees(window, taps[first])) ++first;
    while (first < last && !sees(window, taps[last - 1])) --last;
    if (!segments.empty() && segments.back().first_tap == first && segments.back().last_tap == last) {
      segments.back().last = window + 1;
    } else {
      segments.push_back({window, window + 1, first, last});
    }
  }
  return segments;
}

// The output pixels of a phase that see the same taps.
struct PartTap {
  Index row, column, kernel_row, kernel_column;
};
struct Part {
  const Phase* phase;
  Index first_row, last_row, first_column, last_column;
  std::vector<PartTap> taps;
};

inline std::vector<Part> parts_of(const Plan& plan, const Images& in, bool copy) {
  std::vector<Part> parts;
  for (const Phase& phase : plan.phases) {
    for (const Segment& down : segments_of(phase.down, phase.rows, plan.in_row_step, in.rows, copy)) {
      for (const Segment& across : segments_of(phase.across, phase.columns, plan.in_column_step, in.columns, copy)) {
        Part part{&phase, down.first, down.last, across.first, across.last, {}};
        for (std::size_t r = down.first_tap; r < down.last_tap; ++r) {
          for (std::size_t c = across.first_tap; c < across.last_tap; ++c) {
            part.taps.push_back(
                {phase.down[r].offset, phase.across[c].offset, phase.down[r].index, phase.across[c].index});
          }
        }
        parts.push_back(part);
      }
    }
  }
  return parts;
}

// ---- the tile -----------------------------------------------------------------------------------------------

// P pixels of one output row times V vectors of output channels, summed in registers over `runs` runs of
// `length` adjacent input floats. Weights: [runs][length][V * W]. `lanes` of the last vector are stored.
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

using TileFunction = void (*)(const float*, Index, const Index*, Index, Index, const float*, float*, Index, int);

// Each tile takes time to compile: narrow ones, for few channels, come in fewer sizes.
template <int W, int V>
constexpr int most_pixels() {
  return std::min(kRegisters / V, W < kWidth ? 8 : V == 1 ? 16 : 14);
}

template <int W, int V, int... P>
TileFunction tile_at(Index pixels, std::integer_sequence<int, P...>) {
  static constexpr TileFunction table[] = {tile<W, V, P + 1>...};
  return table[pixels - 1];
}

template <int W, int V>
TileFunction tile_of(Index pixels) {
  return tile_at<W, V>(pixels, std::make_integer_sequence<int, most_pixels<W, V>()>());
}

// A block of output channels: `vectors` vectors of `width` from channel `first`.
struct Panel {
  int width, vectors;
  Index first;
  int lanes;  // used in the last vector
  Index floats() const { return width * vectors; }
  Index channels() const { return (vectors - 1) * width + lanes; }

  Index pixels() const {
    if (vectors == 3) return most_pixels<kWidth, 3>();
    if (vectors == 2) return most_pixels<kWidth, 2>();
    return width == kWidth ? most_pixels<kWidth, 1>() : most_pixels<4, 1>();
  }

  TileFunction function(Index pixels) const {
    if (vectors == 3) return tile_of<kWidth, 3>(pixels);
    if (vectors == 2) return tile_of<kWidth, 2>(pixels);
    if (width == kWidth) return tile_of<kWidth, 1>(pixels);
    return width == 8 ? tile_of<8, 1>(pixels) : tile_of<4, 1>(pixels);
  }
};

// Panels that cover `channels`, two vectors each, the last one to three.
inline std::vector<Panel> panels_of(Index channels) {
  int width = kWidth;
  while (width > 4 && channels <= width / 2) width /= 2;
  std::vector<Panel> panels;
  for (Index first = 0; first < channels;) {
    const Index left = ceil_div(channels - first, width);
    const int vectors = left == 3 ? 3 : static_cast<int>(std::min<Index>(left, 2));
    const Index covered = std::min<Index>(vectors * width, channels - first);
    panels.push_back({width, vectors, first, static_cast<int>(covered - (vectors - 1) * width)});
    first += covered;
  }
  return panels;
}

// ---- packing ------------------------------------------------------------------------------------------------

// Runs of adjacent input floats that a phase reads: offsets from the window's origin, all of one length.
struct Runs {
  std::vector<Index> offsets;
  Index taps_each = 1;

  Runs(const Phase& phase, Index row_floats, Index channels, bool join) {
    for (std::size_t c = 1; c < phase.across.size(); ++c) {
      join = join && phase.across[c].offset == phase.across[c - 1].offset + 1;
    }
    if (join && phase.taps() > 0) taps_each = phase.across.size();
    for (const Tap& row : phase.down) {
      for (std::size_t c = 0; c < phase.across.size(); c += taps_each) {
        offsets.push_back(row.offset * row_floats + phase.across[c].offset * channels);
      }
    }
  }
};

// Kernel elements as [taps][inputs][panel floats], zero beyond the last output channel.
inline void pack_panel(const float* w, const Geometry& at, const Phase& phase, bool swapped, Index inputs,
                       Index kernel_inputs, Index kernel_outputs, Index group, const Panel& panel, float* to) {
  // w is [kh, kw, kernel_inputs, kernel_outputs]; this group's outputs start at `base`.
  const Index base = group * (kernel_outputs / at.groups);
  const Index channels = panel.channels();
  for (const Tap& row : phase.down) {
    for (const Tap& column : phase.across) {
      const float* from = w + (row.index * at.columns.taps + column.index) * kernel_inputs * kernel_outputs + base;
      for (Index i = 0; i < inputs; ++i, to += panel.floats()) {
        if (swapped) {
          const float* lane = from + panel.first * kernel_outputs + i;
          for (Index o = 0; o < channels; ++o) to[o] = lane[o * kernel_outputs];
        } else {
          copy_floats(to, from + i * kernel_outputs + panel.first, channels);
        }
        fill_floats(to + channels, 0.0f, panel.floats() - channels);
      }
    }
  }
}

// ---- the whole correlation ----------------------------------------------------------------------------------

constexpr Index kCacheFloats = 48 * 1024;  // what a unit of work may pack: a fraction of a second-level cache

inline void correlate(const Pool& pool, const Plan& plan, const Geometry& at, const float* x, Images in, const float* w,
                      Index kernel_inputs, Index kernel_outputs, float* y, Images out) {
  const Index groups = at.groups;
  const Index inputs = in.channels / groups, outputs = out.channels / groups;
  const std::vector<Panel> panels = panels_of(outputs);
  const Index phase_count = plan.phases.size();
  const Index images = in.count / at.members;
  const Index kernel_floats = at.rows.taps * at.columns.taps * kernel_inputs * kernel_outputs;

  // Weights, packed once for all threads: [members][groups][phases][panels].
  std::vector<Index> starts;  // of (phase, panel)
  Index packed_floats = 0;
  for (const Phase& phase : plan.phases) {
    for (const Panel& panel : panels) {
      starts.push_back(packed_floats);
      packed_floats += phase.taps() * inputs * panel.floats();
    }
  }
  float* weights = scratch(kWeights, at.members * groups * packed_floats);
  const Index pieces = at.members * groups * phase_count * panels.size();
  auto pack = [&](Index piece) {
    const Index panel = piece % panels.size(), phase = piece / panels.size() % phase_count;
    const Index group = piece / panels.size() / phase_count % groups;
    const Index member = piece / panels.size() / phase_count / groups;
    pack_panel(w + member * kernel_floats, at, plan.phases[phase], plan.swapped, inputs, kernel_inputs, kernel_outputs,
               group, panels[panel],
               weights + (member * groups + group) * packed_floats + starts[phase * panels.size() + panel]);
  };
  if (at.members * groups * packed_floats > 64 * 1024) {
    parallel(pool, pieces, pack);
  } else {
    for (Index piece = 0; piece < pieces; ++piece) pack(piece);
  }

  // Units of work: bands of output rows whose input fits the cache.
  const Reach reach(plan);
  const Index rows = plan.phases[0].rows;
  Index band = rows;
  while (band > 1 && reach.cut(plan, 0, band, 0, inputs).floats() > kCacheFloats) band = ceil_div(band, 2);
  while (band > 2 && in.count * ceil_div(rows, band) < 4 * pool.size()) band = ceil_div(band, 2);
  const Index bands = ceil_div(rows, band);

  const Cut everything = reach.cut(plan, 0, rows, 0, in.channels);
  const bool direct = reach.inside(everything, in);
  const Index pixel = direct ? in.channels : inputs;
  const Index row_floats = direct ? in.row_floats() : reach.columns * inputs;
  std::vector<Runs> runs;
  for (const Phase& phase : plan.phases) runs.emplace_back(phase, row_floats, pixel, pixel == inputs);

  parallel(pool, in.count * bands, [&](Index unit) {
    const Index image = unit / bands, member = image / images;
    const Index first = unit % bands * band, last = std::min(rows, first + band);
    // Written and read while the first panel is computed: this band of the output, the next of the input.
    const Index in_start = image * in.image_floats() + first * plan.in_row_step * in.row_floats();
    const Index in_floats = (last - first) * plan.in_row_step * in.row_floats();
    const Index out_start = image * out.image_floats() + first * plan.out_row_step * out.row_floats();
    const Ahead<false> next_inputs(x, in.floats(), x + in_start + in_floats, in_floats);
    const Ahead<true> results(y, out.floats(), y + out_start, (last - first) * plan.out_row_step * out.row_floats());
    for (Index group = 0; group < groups; ++group) {
      const float* source;  // the origin of window (first, 0)
      if (direct) {
        source = x + image * in.image_floats() + first * plan.in_row_step * row_floats + group * inputs;
      } else {
        const Cut cut = reach.cut(plan, first, last, group * inputs, inputs);
        float* packed = scratch(kPacked, cut.floats());
        copy_cut(x + image * in.image_floats(), in, cut, packed);
        source = packed - reach.low_row * row_floats - reach.low_column * pixel;
      }
      for (Index p = 0; p < phase_count; ++p) {
        const Phase& phase = plan.phases[p];
        const Index length = runs[p].taps_each * inputs;
        for (std::size_t b = 0; b < panels.size(); ++b) {
          const Panel& panel = panels[b];
          const float* weight = weights + (member * groups + group) * packed_floats + starts[p * panels.size() + b];
          const Index tiles = ceil_div(phase.columns, panel.pixels());
          const Index wide = ceil_div(phase.columns, tiles), wides = phase.columns - (wide - 1) * tiles;
          const TileFunction wide_tile = panel.function(wide);
          const TileFunction narrow_tile = wide > 1 ? panel.function(wide - 1) : nullptr;
          const Index step = plan.out_column_step * out.channels;
          for (Index i = first; i < std::min(last, phase.rows); ++i) {
            if (group == 0 && p == 0 && b == 0) {
              next_inputs.part(i - first, last - first);
              results.part(i - first, last - first);
            }
            const float* from = source + (i - first) * plan.in_row_step * row_floats;
            float* to = y + image * out.image_floats() + (phase.first_row + i * plan.out_row_step) * out.row_floats() +
                        phase.first_column * out.channels + group * outputs + panel.first;
            for (Index t = 0; t < tiles; ++t) {
              const Index pixels = t < wides ? wide : wide - 1;
              (t < wides ? wide_tile : narrow_tile)(from, plan.in_column_step * pixel, runs[p].offsets.data(),
                                                    runs[p].offsets.size(), length, weight, to, step, panel.lanes);
              from += pixels * plan.in_column_step * pixel;
              to += pixels * step;
            }
          }
        }
      }
    }
  });
}

}  // namespace nas
