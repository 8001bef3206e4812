// Products of matrices with sums in registers: what convolutions spend their time in.
#pragma once

#include <vector>

#include "vectors.h"

namespace nas {

// A block of output channels: `vectors` vectors of `width` from channel `first`.
struct Panel {
  int width, vectors;
  Index first;
  int lanes;  // used in the last vector
  Index floats() const { return width * vectors; }
  Index channels() const { return (vectors - 1) * width + lanes; }
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

// Pixels times a panel's weights [runs][length][panel floats]: each pixel of x is `run_count` runs of `length` adjacent
// floats, at offsets `runs`. Of the last vector of each pixel of y, `lanes` are written.
void multiply(const Panel& panel, Index pixels, const float* x, Index x_step, const Index* runs, Index run_count,
              Index length, const float* w, float* y, Index y_step, int lanes);

// The same for pixels of `inputs` floats that lie side by side.
inline void multiply(const Panel& panel, Index pixels, const float* x, Index inputs, const float* w, float* y,
                     Index y_step, int lanes) {
  const Index origin = 0;
  multiply(panel, pixels, x, inputs, &origin, 1, inputs, w, y, y_step, lanes);
}

// Images, rows and columns of pixels to sum over: how many, or how many floats from one to the next.
struct Steps {
  Index image, row, column;
};

// Adds the outer products of `length` adjacent floats of x and a panel of dy, over all pixels, to `sums`
// [length][stride], which hold nothing yet if `fresh`.
void outer_products(const Panel& panel, Index length, const float* x, Steps x_step, const float* dy, Steps dy_step,
                    Steps count, float* sums, Index stride, bool fresh);

}  // namespace nas
