// Images, and the windows that slide over them.
#pragma once

#include "handlers.h"

namespace nas {

// One axis of the windows.
struct Axis {
  Index image, taps, stride, before, after, dilation;
  Index output() const { return (image + before + after - (taps - 1) * dilation - 1) / stride + 1; }
  // Taps [first, last) of window `at` that lie inside the image (dilation 1).
  Index first(Index at) const { return std::max<Index>(0, before - at * stride); }
  Index last(Index at) const { return std::min(taps, image + before - at * stride); }
};

// The windows of a convolution or pool. A weight gradient may be that of several batches, `members`, each by itself.
struct Geometry {
  Axis rows, columns;
  Index groups, members;

  // The order of Windows.numbers in geometry.py.
  explicit Geometry(Call::Numbers at)
      : rows{at[0], at[2], at[4], at[6], at[7], at[10]},
        columns{at[1], at[3], at[5], at[8], at[9], at[11]},
        groups(at[12]),
        members(at[13]) {}
};

// Images in memory: [images, rows, columns, channels].
struct Images {
  Index count, rows, columns, channels;
  Images(Index count, Index rows, Index columns, Index channels)
      : count(count), rows(rows), columns(columns), channels(channels) {}
  explicit Images(Call::Numbers shape) : Images(shape[0], shape[1], shape[2], shape[3]) {}
  Index row_floats() const { return columns * channels; }
  Index image_floats() const { return rows * columns * channels; }
  Index floats() const { return count * image_floats(); }
};

// Part of one image with zeros where it hangs over an edge: rows [row, row + rows), columns likewise,
// channels [channel, channel + channels).
struct Cut {
  Index row, rows, column, columns, channel, channels;
  Index row_floats() const { return columns * channels; }
  Index floats() const { return rows * columns * channels; }
};

inline void copy_cut(const float* image, const Images& from, const Cut& cut, float* to) {
  const Index first = std::max<Index>(cut.column, 0);
  const Index last = std::min(cut.column + cut.columns, from.columns);
  for (Index row = cut.row; row < cut.row + cut.rows; ++row, to += cut.row_floats()) {
    if (row < 0 || row >= from.rows || first >= last) {
      fill_floats(to, 0.0f, cut.row_floats());
      continue;
    }
    float* middle = to + (first - cut.column) * cut.channels;
    float* end = to + (last - cut.column) * cut.channels;
    const float* source = image + (row * from.columns + first) * from.channels + cut.channel;
    fill_floats(to, 0.0f, middle - to);
    if (cut.channels == from.channels) {
      copy_floats(middle, source, end - middle);
    } else {
      for (float* pixel = middle; pixel < end; pixel += cut.channels, source += from.channels) {
        copy_floats(pixel, source, cut.channels);
      }
    }
    fill_floats(end, 0.0f, to + cut.row_floats() - end);
  }
}

}  // namespace nas
