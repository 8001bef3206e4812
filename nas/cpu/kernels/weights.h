// The weight gradient of a convolution: sums over pixels of x times dy, one for each tap and pair of channels.
#pragma once

#include "plan.h"
#include "tiles.h"

namespace nas {

// How the work of a weight gradient is divided: partial sums over chunks of the images, which are added up in order
// at the end, and, where the result is too large for many of those, panels apart. It depends on shapes alone, so the
// result is the same to the bit for any number of threads.
struct Chunks {
  Index images, panels;
  Chunks(Index count, Index result_floats, Index panel_count)
      : images(std::min(count, std::clamp<Index>(1024 * 1024 / result_floats, 1, 16))),
        panels(images < std::min<Index>(count, 8) ? panel_count : 1) {}
};

// dw [members * kh, kw, C / groups, O] from x [.., H, W, C] and dy [.., H', W', O].
inline void direct_dw(const Pool& pool, const Geometry& at, const float* x, const Images& in, const float* dy,
                      const Images& out, float* dw) {
  const Index groups = at.groups;
  const Index inputs = in.channels / groups, outputs = out.channels / groups;
  const Plan plan = forward_plan(at);
  const Phase& phase = plan.phases[0];
  const Reach reach(plan);
  const std::vector<Panel> panels = panels_of(outputs);
  const Index padded_outputs = panels.back().first + panels.back().floats();
  const Index taps = phase.taps();
  const Index images = in.count / at.members;

  const Index part_floats = taps * inputs * padded_outputs;  // of one group
  const Chunks split(images, part_floats * groups, panels.size());
  const Index chunks = split.images;
  const Scratch<float> parts(at.members * groups * chunks * part_floats);

  const Cut everything = reach.cut(plan, 0, phase.rows, 0, in.channels);
  const bool direct = reach.inside(everything, in);
  const Index pixel = direct ? in.channels : inputs;
  const Index row_floats = direct ? in.row_floats() : reach.columns * inputs;
  const Runs runs(phase, row_floats, pixel, pixel == inputs);
  const Index length = runs.taps_each * inputs;
  const bool pack_dy = padded_outputs != outputs;

  // Several small images at once, or bands of a large one.
  // The more floats the result has, the more pixels each pass over it should add.
  const Index budget = std::clamp<Index>(part_floats, kCacheFloats, 1024 * 1024);
  Index band = phase.rows;
  while (band > 1 && reach.cut(plan, 0, band, 0, inputs).floats() > budget) band = ceil_div(band, 2);
  const Index image_floats = reach.cut(plan, 0, band, 0, inputs).floats();
  const Index together = band < phase.rows ? 1 : std::max<Index>(1, budget / image_floats);

  parallel(pool, at.members * groups * chunks * split.panels, [&](Index unit) {
    const Index share = unit % split.panels, piece = unit / split.panels;
    const Index chunk = piece % chunks, group = piece / chunks % groups, member = piece / chunks / groups;
    const auto first_panel = panels.begin() + share * panels.size() / split.panels;
    const auto last_panel = panels.begin() + (share + 1) * panels.size() / split.panels;
    const Index begin = member * images + images * chunk / chunks;
    const Index end = member * images + images * (chunk + 1) / chunks;
    float* part = parts + piece * part_floats;
    const Scratch<float> packed(direct ? 0 : image_floats * together + 64);
    const Scratch<float> packed_dy(pack_dy ? together * band * out.columns * padded_outputs : 0);
    bool fresh = true;
    for (Index image = begin; image < end; image += together) {
      const Index count = std::min(together, end - image);
      for (Index first = 0; first < phase.rows; first += band, fresh = false) {
        const Index rows = std::min(band, phase.rows - first);
        Steps x_step{in.image_floats(), at.rows.stride * row_floats, at.columns.stride * pixel};
        Steps dy_step{out.image_floats(), out.row_floats(), out.channels};
        const float* source = x + image * in.image_floats() + first * x_step.row + group * inputs;
        if (!direct) {
          const Cut cut = reach.cut(plan, first, first + rows, group * inputs, inputs);
          for (Index i = 0; i < count; ++i) {
            copy_cut(x + (image + i) * in.image_floats(), in, cut, packed + i * cut.floats());
          }
          x_step.image = cut.floats();
          source = packed - reach.low_row * row_floats - reach.low_column * pixel;
        }
        const float* given = dy + image * out.image_floats() + first * out.row_floats() + group * outputs;
        if (pack_dy) {
          float* to = packed_dy;
          for (Index i = 0; i < count; ++i) {
            for (Index p = 0; p < rows * out.columns; ++p, to += padded_outputs) {
              copy_floats(to, given + i * out.image_floats() + p * out.channels, outputs);
              fill_floats(to + outputs, 0.0f, padded_outputs - outputs);
            }
          }
          given = packed_dy;
          dy_step = {rows * out.columns * padded_outputs, out.columns * padded_outputs, padded_outputs};
        }
        const Index x_floats = count * std::min(in.image_floats(), rows * at.rows.stride * in.row_floats());
        const Index dy_floats = count * rows * out.row_floats();
        const Ahead<false> next_x(x, in.floats(),
                                  x + image * in.image_floats() + first * at.rows.stride * in.row_floats() + x_floats,
                                  x_floats);
        const Ahead<false> next_dy(dy, out.floats(),
                                   dy + image * out.image_floats() + first * out.row_floats() + dy_floats, dy_floats);
        for (auto at_panel = first_panel; at_panel != last_panel; ++at_panel) {
          for (std::size_t run = 0; run < runs.offsets.size(); ++run) {
            if (at_panel == first_panel) {
              next_x.part(run, runs.offsets.size());
              next_dy.part(run, runs.offsets.size());
            }
            outer_products(*at_panel, length, source + runs.offsets[run], x_step, given, dy_step,
                           {count, rows, phase.columns}, part + run * length * padded_outputs, padded_outputs, fresh);
          }
        }
      }
    }
  });

  // Rows of the result: [member][tap][input] of `groups * outputs` floats.
  auto add_row = [&](Index row) {
    const Index member = row / (taps * inputs);
    for (Index group = 0; group < groups; ++group) {
      float* to = dw + row * out.channels + group * outputs;
      const float* from =
          parts + (member * groups + group) * chunks * part_floats + row % (taps * inputs) * padded_outputs;
      copy_floats(to, from, outputs);
      for (Index chunk = 1; chunk < chunks; ++chunk) {
        from += part_floats;
        for (Index o = 0; o < outputs; ++o) to[o] += from[o];
      }
    }
  };
  constexpr Index kRows = 64;
  const Index rows = at.members * taps * inputs;
  parallel(pool, ceil_div(rows, kRows), [&](Index block) {
    for (Index row = block * kRows; row < std::min(rows, (block + 1) * kRows); ++row) add_row(row);
  });
}

}  // namespace nas
