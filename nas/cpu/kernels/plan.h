// Which input pixels each output pixel of a convolution or pool reads.
//
// The forward pass correlates x with the kernel. The input gradient correlates dy with the kernel flipped and its
// channels swapped; with stride s the pixels of dx fall into s*s phases, each a correlation with some of the taps.
#pragma once

#include "geometry.h"

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

constexpr Index kCacheFloats = 48 * 1024;  // what a unit of work may copy: a fraction of a second-level cache

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

}  // namespace nas
