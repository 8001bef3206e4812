// A convolution or its input gradient, as one correlation of an input with a packed kernel.
#pragma once

#include "plan.h"
#include "tiles.h"

namespace nas {

// A convolution's kernel [kh, kw, inputs, outputs].
struct Kernel {
  const float* data;
  Index inputs, outputs;
};

// A group's kernel elements as [taps][inputs][panel floats], zero beyond the last output channel.
inline void pack_panel(const Kernel& w, const Geometry& at, const Phase& phase, bool swapped, Index inputs, Index group,
                       const Panel& panel, float* to) {
  const Index base = group * (w.outputs / at.groups);  // the group's first output
  const Index channels = panel.channels();
  for (const Tap& row : phase.down) {
    for (const Tap& column : phase.across) {
      const float* from = w.data + (row.index * at.columns.taps + column.index) * w.inputs * w.outputs + base;
      for (Index i = 0; i < inputs; ++i, to += panel.floats()) {
        if (swapped) {
          const float* lane = from + panel.first * w.outputs + i;
          for (Index o = 0; o < channels; ++o) to[o] = lane[o * w.outputs];
        } else {
          copy_floats(to, from + i * w.outputs + panel.first, channels);
        }
        fill_floats(to + channels, 0.0f, panel.floats() - channels);
      }
    }
  }
}

inline void correlate(const Pool& pool, const Plan& plan, const Geometry& at, const float* x, const Images& in,
                      const Kernel& w, float* y, const Images& out) {
  const Index groups = at.groups;
  const Index inputs = in.channels / groups, outputs = out.channels / groups;
  const std::vector<Panel> panels = panels_of(outputs);
  const Index phase_count = plan.phases.size();

  // Weights, packed once for all threads: [groups][phases][panels].
  std::vector<Index> starts;  // of (phase, panel)
  Index packed_floats = 0;
  for (const Phase& phase : plan.phases) {
    for (const Panel& panel : panels) {
      starts.push_back(packed_floats);
      packed_floats += phase.taps() * inputs * panel.floats();
    }
  }
  const Scratch<float> weights(groups * packed_floats);
  const Index pieces = groups * starts.size();
  auto pack = [&](Index piece) {
    const Index group = piece / starts.size(), start = piece % starts.size();
    pack_panel(w, at, plan.phases[start / panels.size()], plan.swapped, inputs, group, panels[start % panels.size()],
               weights + group * packed_floats + starts[start]);
  };
  if (groups * packed_floats > 64 * 1024) {
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
    const Index image = unit / bands;
    const Index first = unit % bands * band, last = std::min(rows, first + band);
    // Written and read while the first panel is computed: this band of the output, the next of the input.
    const Index in_start = image * in.image_floats() + first * plan.in_row_step * in.row_floats();
    const Index in_floats = (last - first) * plan.in_row_step * in.row_floats();
    const Index out_start = image * out.image_floats() + first * plan.out_row_step * out.row_floats();
    const Ahead<false> next_inputs(x, in.floats(), x + in_start + in_floats, in_floats);
    const Ahead<true> results(y, out.floats(), y + out_start, (last - first) * plan.out_row_step * out.row_floats());
    const Scratch<float> packed(direct ? 0 : reach.cut(plan, first, last, 0, inputs).floats());
    for (Index group = 0; group < groups; ++group) {
      const float* source;  // the origin of window (first, 0)
      if (direct) {
        source = x + image * in.image_floats() + first * plan.in_row_step * row_floats + group * inputs;
      } else {
        const Cut cut = reach.cut(plan, first, last, group * inputs, inputs);
        copy_cut(x + image * in.image_floats(), in, cut, packed);
        source = packed - reach.low_row * row_floats - reach.low_column * pixel;
      }
      for (Index p = 0; p < phase_count; ++p) {
        const Phase& phase = plan.phases[p];
        const Index length = runs[p].taps_each * inputs;
        for (std::size_t b = 0; b < panels.size(); ++b) {
          const Panel& panel = panels[b];
          const float* weight = weights + group * packed_floats + starts[p * panels.size() + b];
          for (Index i = first; i < std::min(last, phase.rows); ++i) {
            if (group == 0 && p == 0 && b == 0) {
              next_inputs.part(i - first, last - first);
              results.part(i - first, last - first);
            }
            const float* from = source + (i - first) * plan.in_row_step * row_floats;
            float* to = y + image * out.image_floats() + (phase.first_row + i * plan.out_row_step) * out.row_floats() +
                        phase.first_column * out.channels + group * outputs + panel.first;
            multiply(panel, phase.columns, from, plan.in_column_step * pixel, runs[p].offsets.data(),
                     runs[p].offsets.size(), length, weight, to, plan.out_column_step * out.channels, panel.lanes);
          }
        }
      }
    }
  });
}

}  // namespace nas
