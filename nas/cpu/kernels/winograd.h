// 3x3 convolutions with stride 1 by Winograd's F(2x2, 3x3): 16 multiplications for 4 outputs instead of 36
// (Lavin and Gray 2016, section 4.1). With tiles d of 4x4 inputs that overlap by two,
//   y = A' [(G w G') * (B' d B)] A   and   dw = G' [sum over tiles of (A dy A') * (B' d B)] G
// where * is elementwise over tiles and a product of matrices over channels. All coefficients are 0, 1/2 or 1:
// the result is about as exact as the direct sum.
#pragma once

#include "correlate.h"
#include "weights.h"

namespace nas {

constexpr Index kPoints = 16;  // of a transformed tile

// Whether a plan is a 3x3 correlation with stride 1, with channels and tiles enough to pay for the transforms.
inline bool suits_winograd(const Geometry& at, const Plan& plan, Index images, Index inputs, Index outputs) {
  auto adjacent = [](const std::vector<Tap>& taps) {
    return taps.size() == 3 && taps[1].offset == taps[0].offset + 1 && taps[2].offset == taps[0].offset + 2;
  };
  const Phase& phase = plan.phases[0];
  const Index tiles = ceil_div(phase.rows, 2) * ceil_div(phase.columns, 2);
  return plan.phases.size() == 1 && plan.in_row_step == 1 && plan.in_column_step == 1 && adjacent(phase.down) &&
         adjacent(phase.across) && at.groups == 1 && inputs >= kWidth && outputs >= kWidth &&
         phase.rows * phase.columns * 9 > tiles * 24 && images * tiles >= 16;
}

// Tiles of 2x2 outputs, in blocks that a unit of work transforms, multiplies and transforms back.
struct Tiles {
  Index rows, columns;  // of tiles in an image
  Index band;           // rows of tiles in a block
  Index bands, images;  // blocks in an image; images in a block
  Index most;           // tiles in a block
  Tiles(Index out_rows, Index out_columns, Index wanted)
      : rows(ceil_div(out_rows, 2)),
        columns(ceil_div(out_columns, 2)),
        band(std::clamp<Index>(wanted / columns, 1, rows)),
        bands(ceil_div(rows, band)),
        images(band < rows ? 1 : std::max<Index>(1, wanted / (rows * columns))),
        most(images * band * columns) {}
  // Floats from one point of the transformed tiles to the next: no power of two, which would crowd a cache's sets.
  Index point(Index channels) const { return most * channels + kWidth; }
};

// Rows of tiles [first, last) of `count` images, from image `image`.
struct Block {
  Index image, count, first, last;
  Index tiles(const Tiles& of) const { return count * (last - first) * of.columns; }
  // The pixels it has in images, from which they follow each other.
  Index start(const Images& images) const { return image * images.image_floats() + 2 * first * images.row_floats(); }
  Index floats(const Images& images) const {
    return count * std::min(2 * (last - first) * images.row_floats(), images.image_floats());
  }
};

// The 16 points of a tile, `point` floats apart: four pointers and two strides, which stay in registers.
template <typename Float>
struct Points {
  Float* row[4];
  Index one, three;
  Points(Float* first, Index point)
      : row{first, first + 4 * point, first + 8 * point, first + 12 * point}, one(point), three(3 * point) {}
  Float* at(int r, int c) const { return row[r] + (c == 3 ? three : c * one); }
  void next(Index floats) {
#pragma GCC unroll 4
    for (Float*& pointer : row) {
      pointer += floats;
      asm volatile("" : "+r"(pointer));
    }
  }
};

// B' d B of a row of tiles. `rows` are the four image rows they cover, the first tile's left pixel in column `left`
// (perhaps outside the image, where there are zeros).
template <int W>
__attribute__((noinline)) void input_transform(const float* const rows[4], Index left, Index columns, Index channels,
                                               Index tiles, float* to, Index point) {
  // Two columns of B' d, which the next tile uses again.
  Vector<W> a[4], b[4];
  const float *r0 = rows[0] + left * channels, *r1 = rows[1] + left * channels, *r2 = rows[2] + left * channels,
              *r3 = rows[3] + left * channels;
  auto column = [&](Vector<W>* sums) {
    if (left >= 0 && left < columns) {
      const Vector<W> first = load<W>(r0), second = load<W>(r1), third = load<W>(r2), fourth = load<W>(r3);
      sums[0] = first - third;
      sums[1] = second + third;
      sums[2] = third - second;
      sums[3] = second - fourth;
    } else {
      sums[0] = sums[1] = sums[2] = sums[3] = Vector<W>{};
    }
    ++left;
    r0 += channels;
    r1 += channels;
    r2 += channels;
    r3 += channels;
  };
  column(a);
  column(b);
  Points<float> points(to, point);
  for (Index tile = 0; tile < tiles; ++tile) {
    Vector<W> c[4], d[4];
    column(c);
    column(d);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      store<W>(points.at(r, 0), a[r] - c[r]);
      store<W>(points.at(r, 1), b[r] + c[r]);
      store<W>(points.at(r, 2), c[r] - b[r]);
      store<W>(points.at(r, 3), b[r] - d[r]);
      a[r] = c[r];
      b[r] = d[r];
    }
    points.next(channels);
  }
}

// A' m A of a row of tiles, to two rows of `columns` pixels; only the first where `lower` is null.
template <int W>
__attribute__((noinline)) void output_transform(const float* from, Index point, Index step, float* upper, float* lower,
                                                Index channels, Index columns) {
  Points<const float> points(from, point);
  for (Index column = 0; column < columns; column += 2) {
    Vector<W> above[4], below[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vector<W> first = load<W>(points.at(0, c)), second = load<W>(points.at(1, c)),
                      third = load<W>(points.at(2, c)), fourth = load<W>(points.at(3, c));
      above[c] = first + second + third;
      below[c] = second - third - fourth;
    }
    points.next(step);
    const bool right = column + 1 < columns;
    store<W>(upper, above[0] + above[1] + above[2]);
    if (right) store<W>(upper + channels, above[1] - above[2] - above[3]);
    upper += 2 * channels;
    if (lower != nullptr) {
      store<W>(lower, below[0] + below[1] + below[2]);
      if (right) store<W>(lower + channels, below[1] - below[2] - below[3]);
      lower += 2 * channels;
    }
  }
}

// A dy A' of a row of tiles, from two rows of `columns` pixels; only the first where `lower` is null.
template <int W>
__attribute__((noinline)) void gradient_transform(const float* upper, const float* lower, Index channels, Index columns,
                                                  float* to, Index point, Index step) {
  Points<float> points(to, point);
  for (Index column = 0; column < columns; column += 2) {
    Vector<W> rows[4][2];
    const bool right = column + 1 < columns;
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      const bool inside = c == 0 || right;
      const Vector<W> first = inside ? load<W>(upper + c * channels) : Vector<W>{};
      const Vector<W> second = inside && lower != nullptr ? load<W>(lower + c * channels) : Vector<W>{};
      rows[0][c] = first;
      rows[1][c] = first + second;
      rows[2][c] = first - second;
      rows[3][c] = -second;
    }
    upper += 2 * channels;
    if (lower != nullptr) lower += 2 * channels;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      store<W>(points.at(r, 0), rows[r][0]);
      store<W>(points.at(r, 1), rows[r][0] + rows[r][1]);
      store<W>(points.at(r, 2), rows[r][0] - rows[r][1]);
      store<W>(points.at(r, 3), -rows[r][1]);
    }
    points.next(step);
  }
}

// G w G' of kernels [9][floats] to [16][floats].
inline void kernel_transform(const float* w, Index floats, float* to) {
  for_floats(floats, [&](auto width, Index f) {
    using V = Vector<width()>;
    auto expand = [](V a, V b, V c, V out[4]) {
      out[0] = a;
      out[1] = (a + b + c) * 0.5f;
      out[2] = (a - b + c) * 0.5f;
      out[3] = c;
    };
    V rows[3][4];
    for (int c = 0; c < 3; ++c) {
      V column[4];
      expand(load<width()>(w + c * floats + f), load<width()>(w + (3 + c) * floats + f),
             load<width()>(w + (6 + c) * floats + f), column);
      for (int r = 0; r < 4; ++r) rows[c][r] = column[r];
    }
    for (int r = 0; r < 4; ++r) {
      V row[4];
      expand(rows[0][r], rows[1][r], rows[2][r], row);
      for (int c = 0; c < 4; ++c) store<width()>(to + (4 * r + c) * floats + f, row[c]);
    }
  });
}

inline void transform_inputs(const Tiles& tiles, const Phase& phase, const Block& block, const float* x, Images in,
                             float* to) {
  const Index channels = in.channels;
  const Scratch<float> zeros(in.row_floats());
  fill_floats(zeros, 0.0f, in.row_floats());
  for (Index image = block.image; image < block.image + block.count; ++image) {
    for (Index tile = block.first; tile < block.last; ++tile, to += tiles.columns * channels) {
      channel_blocks(channels, [&](auto width, Index channel) {
        const float* rows[4];
        for (Index r = 0; r < 4; ++r) {
          const Index row = 2 * tile + phase.down[0].offset + r;
          const bool inside = row >= 0 && row < in.rows;
          rows[r] = (inside ? x + image * in.image_floats() + row * in.row_floats() : zeros) + channel;
        }
        input_transform<width()>(rows, phase.across[0].offset, in.columns, channels, tiles.columns, to + channel,
                                 tiles.point(channels));
      });
    }
  }
}

inline void winograd(const Pool& pool, const Plan& plan, const Geometry& at, const float* x, const Images& in,
                     const Kernel& w, float* y, const Images& out) {
  const Index inputs = in.channels, outputs = out.channels;
  const Phase& phase = plan.phases[0];
  const std::vector<Panel> panels = panels_of(outputs);
  const Index padded = panels.back().first + panels.back().floats();

  // Kernels as [panels][points][inputs][panel floats].
  const Scratch<float> weights(kPoints * inputs * padded);
  parallel(pool, panels.size(), [&](Index i) {
    const Panel& panel = panels[i];
    const Scratch<float> packed(9 * inputs * panel.floats());
    pack_panel(w, at, phase, plan.swapped, inputs, 0, panel, packed);
    kernel_transform(packed, inputs * panel.floats(), weights + kPoints * inputs * panel.first);
  });

  const Tiles tiles(phase.rows, phase.columns, 48);
  parallel(pool, ceil_div(in.count, tiles.images) * tiles.bands, [&](Index unit) {
    const Index band = unit % tiles.bands, image = unit / tiles.bands * tiles.images;
    const Block block{image, std::min(tiles.images, in.count - image), band * tiles.band,
                      std::min(tiles.rows, (band + 1) * tiles.band)};
    const Index used = block.tiles(tiles);
    const Index in_point = tiles.point(inputs), out_point = tiles.point(padded);
    const Scratch<float> transformed(kPoints * (in_point + out_point));
    float* products = transformed + kPoints * in_point;
    transform_inputs(tiles, phase, block, x, in, transformed);

    const Index overlap = (2 + phase.down[0].offset) * in.row_floats();  // what this block has read of the next
    const Ahead<false> next_inputs(x, in.floats(), x + block.start(in) + block.floats(in) + overlap, block.floats(in));
    const Ahead<true> results(y, out.floats(), y + block.start(out), block.floats(out));
    for (Index point = 0; point < kPoints; ++point) {
      next_inputs.part(point, kPoints);
      results.part(point, kPoints);
      for (const Panel& panel : panels) {
        multiply(panel, used, transformed + point * in_point, inputs,
                 weights + (kPoints * panel.first + point * panel.floats()) * inputs,
                 products + point * out_point + panel.first, padded, panel.width);
      }
    }

    const float* from = products;
    for (Index i = image; i < image + block.count; ++i) {
      for (Index row = block.first; row < block.last; ++row) {
        float* upper = y + i * out.image_floats() + 2 * row * out.row_floats();
        float* lower = 2 * row + 1 < phase.rows ? upper + out.row_floats() : nullptr;
        channel_blocks(outputs, [&](auto width, Index channel) {
          output_transform<width()>(from + channel, out_point, padded, upper + channel,
                                    lower == nullptr ? nullptr : lower + channel, outputs, phase.columns);
        });
        from += tiles.columns * padded;
      }
    }
  });
}

// dw from x and dy: the products of transformed tiles, summed over the tiles of a fixed number of chunks.
inline void winograd_dw(const Pool& pool, const Geometry& at, const float* x, const Images& in, const float* dy,
                        const Images& out, float* dw) {
  const Index inputs = in.channels, outputs = out.channels;
  const Plan plan = forward_plan(at);
  const Phase& phase = plan.phases[0];
  const std::vector<Panel> panels = panels_of(outputs);
  const Index padded = panels.back().first + panels.back().floats();
  const Index images = in.count / at.members;
  const Index part_floats = kPoints * inputs * padded;
  const Chunks split(images, part_floats, panels.size());
  const Index chunks = split.images;
  const Scratch<float> parts(at.members * chunks * part_floats);
  const Tiles tiles(phase.rows, phase.columns, std::clamp<Index>(64 * 1024 / (inputs + padded), 32, 128));

  parallel(pool, at.members * chunks * split.panels, [&](Index unit) {
    const Index share = unit % split.panels, chunk = unit / split.panels % chunks,
                member = unit / split.panels / chunks;
    const auto first_panel = panels.begin() + share * panels.size() / split.panels;
    const auto last_panel = panels.begin() + (share + 1) * panels.size() / split.panels;
    const Index first_channel = first_panel->first,
                mine = (last_panel - 1)->first + (last_panel - 1)->channels() - first_channel;
    const Index end = member * images + images * (chunk + 1) / chunks;
    const Index in_point = tiles.point(inputs), out_point = tiles.point(padded);
    const Scratch<float> transformed(kPoints * (in_point + out_point));
    float* given = transformed + kPoints * in_point;
    // Lanes beyond the last channel are multiplied and dropped: they need only be numbers.
    if (padded != outputs) fill_floats(given, 0.0f, kPoints * out_point);
    float* part = parts + (member * chunks + chunk) * part_floats;
    bool fresh = true;
    for (Index image = member * images + images * chunk / chunks; image < end; image += tiles.images) {
      for (Index first = 0; first < tiles.rows; first += tiles.band, fresh = false) {
        const Block block{image, std::min(tiles.images, end - image), first, std::min(tiles.rows, first + tiles.band)};
        const Index used = block.tiles(tiles);
        transform_inputs(tiles, phase, block, x, in, transformed);
        float* to = given;
        for (Index i = image; i < image + block.count; ++i) {
          for (Index row = block.first; row < block.last; ++row) {
            const float* upper = dy + i * out.image_floats() + 2 * row * out.row_floats();
            const float* lower = 2 * row + 1 < phase.rows ? upper + out.row_floats() : nullptr;
            channel_blocks(mine, [&](auto width, Index offset) {
              const Index channel = first_channel + offset;
              gradient_transform<width()>(upper + channel, lower == nullptr ? nullptr : lower + channel, outputs,
                                          phase.columns, to + channel, out_point, padded);
            });
            to += tiles.columns * padded;
          }
        }
        const Ahead<false> next_inputs(x, in.floats(), x + block.start(in) + block.floats(in), block.floats(in));
        const Ahead<false> next_given(dy, out.floats(), dy + block.start(out) + block.floats(out), block.floats(out));
        for (Index point = 0; point < kPoints; ++point) {
          next_inputs.part(point, kPoints);
          next_given.part(point, kPoints);
          for (auto at_panel = first_panel; at_panel != last_panel; ++at_panel) {
            outer_products(*at_panel, inputs, transformed + point * in_point, {0, 0, inputs}, given + point * out_point,
                           {0, 0, padded}, {1, 1, used}, part + point * inputs * padded, padded, fresh);
          }
        }
      }
    }
  });

  // G' S G for each pair of channels.
  parallel(pool, at.members * inputs, [&](Index row) {
    const Index member = row / inputs, input = row % inputs;
    const float* from = parts + member * chunks * part_floats + input * padded;
    float* to = dw + (member * 9 * inputs + input) * outputs;
    for_floats(outputs, [&](auto width, Index f) {
      using V = Vector<width()>;
      V sums[4][4];
      for (int point = 0; point < kPoints; ++point) {
        const float* source = from + point * inputs * padded + f;
        V sum = load<width()>(source);
        for (Index chunk = 1; chunk < chunks; ++chunk) sum += load<width()>(source + chunk * part_floats);
        sums[point / 4][point % 4] = sum;
      }
      V columns[3][4];
      for (int c = 0; c < 4; ++c) {
        const V half = (sums[1][c] + sums[2][c]) * 0.5f;
        columns[0][c] = sums[0][c] + half;
        columns[1][c] = (sums[1][c] - sums[2][c]) * 0.5f;
        columns[2][c] = half + sums[3][c];
      }
      for (int r = 0; r < 3; ++r) {
        const V half = (columns[r][1] + columns[r][2]) * 0.5f;
        float* taps = to + 3 * r * inputs * outputs + f;
        store<width()>(taps, columns[r][0] + half);
        store<width()>(taps + inputs * outputs, (columns[r][1] - columns[r][2]) * 0.5f);
        store<width()>(taps + 2 * inputs * outputs, half + columns[r][3]);
      }
    });
  });
}

}  // namespace nas
