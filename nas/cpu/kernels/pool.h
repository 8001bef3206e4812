// Max and average pooling and their gradients. Windows separate: first the columns of a window, then its row.
// Where columns have stride 1 a row of windows is one stretch of floats, whatever the number of channels.
#pragma once

#include <limits>

#include "common.h"
#include "correlate.h"

namespace nas {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

template <int W>
struct IntegersOf {
  typedef int32_t type __attribute__((vector_size(W * sizeof(int32_t))));
};
template <int W>
using Integers = typename IntegersOf<W>::type;

template <int W>
inline Integers<W> load(const int32_t* from) {
  Integers<W> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <int W>
inline void store(int32_t* to, Integers<W> value) {
  std::memcpy(to, &value, sizeof value);
}

template <typename V>
inline V larger(V best, V value) {  // NaN wins, as in XLA
  return ((value > best) | (value != value)) ? value : best;
}

// Stretches of windows whose floats lie as far apart in the image as in the result.
struct Stretches {
  Index count, floats, in_step;
  Stretches(const Geometry& at, const Images& out)
      : count(at.columns.stride == 1 ? 1 : out.columns),
        floats(at.columns.stride == 1 ? out.row_floats() : out.channels),
        in_step(at.columns.stride * out.channels) {}
};

// A row of the image with room for what windows see beyond its edges.
struct Line {
  Index edge, width, floats;
  Line(const Geometry& at, const Images& in)
      : edge(at.columns.before * in.channels),
        width(in.row_floats()),
        floats(edge + width + at.columns.after * in.channels) {}
};

// ---- max ----------------------------------------------------------------------------------------------------

inline void max_pool(const Pool& pool, const Geometry& at, const float* x, Images in, float* y, Images out) {
  const Axis &rows = at.rows, &columns = at.columns;
  const Line shape(at, in);
  const Stretches stretches(at, out);
  parallel(pool, in.count, [&](Index image) {
    float* line = scratch(kPacked, shape.floats);  // largest value of each column of the window
    fill_floats(line, kLowest, shape.floats);
    for (Index i = 0; i < out.rows; ++i) {
      const Index first = rows.first(i), count = rows.last(i) - first;
      const float* from = x + image * in.image_floats() + (i * rows.stride + first - rows.before) * shape.width;
      for_floats(shape.width, [&](auto width, Index f) {
        auto best = load<width()>(from + f);
        for (Index r = 1; r < count; ++r) best = larger(best, load<width()>(from + f + r * shape.width));
        store<width()>(line + shape.edge + f, best);
      });
      float* to = y + image * out.image_floats() + i * out.row_floats();
      for (Index j = 0; j < stretches.count; ++j, to += stretches.floats) {
        const float* seen = line + j * stretches.in_step;
        for_floats(stretches.floats, [&](auto width, Index f) {
          auto best = load<width()>(seen + f);
          for (Index c = 1; c < columns.taps; ++c) best = larger(best, load<width()>(seen + f + c * in.channels));
          store<width()>(to + f, best);
        });
      }
    }
  });
}

// The tap (row * columns + column) of each window's first maximum, for all windows of one image: first along rows,
// then down, so that of equal values the upper, then the left one stays.
inline void first_maxima(const Geometry& at, const float* x, Images in, Images out, int32_t* taps) {
  const Axis &rows = at.rows, &columns = at.columns;
  const Line shape(at, in);
  const Stretches stretches(at, out);
  const int32_t across = static_cast<int32_t>(columns.taps);
  const Index result = out.row_floats();
  // Lines of the image as windows' columns see them, as many as a window has rows: they stay in the first cache.
  float* line = scratch(kPacked, shape.floats + 2 * rows.taps * result);
  float* bests = line + shape.floats;
  auto* best_taps = reinterpret_cast<int32_t*>(bests + rows.taps * result);
  fill_floats(line, kLowest, shape.floats);
  Index ready = 0;  // rows of the image seen so far
  for (Index i = 0; i < out.rows; ++i) {
    const Index begin = i * rows.stride - rows.before + rows.first(i),
                end = i * rows.stride - rows.before + rows.last(i);
    for (Index row = std::max(ready, begin); row < end; ++row) {
      copy_floats(line + shape.edge, x + row * shape.width, shape.width);
      float* best_to = bests + row % rows.taps * result;
      int32_t* tap_to = best_taps + row % rows.taps * result;
      for (Index j = 0; j < stretches.count; ++j, best_to += stretches.floats, tap_to += stretches.floats) {
        const float* seen = line + j * stretches.in_step;
        for_floats(stretches.floats, [&](auto width, Index f) {
          auto best = load<width()>(seen + f);
          auto tap = Integers<width()>{};
          for (int32_t c = 1; c < across; ++c) {
            const auto value = load<width()>(seen + f + c * in.channels);
            const auto better = value > best;
            best = better ? value : best;
            tap = better ? Integers<width()>{} + c : tap;
          }
          store<width()>(best_to + f, best);
          store<width()>(tap_to + f, tap);
        });
      }
    }
    ready = std::max(ready, end);
    struct Row {
      const float* best;
      const int32_t* tap;
      int32_t first_tap;
    };
    std::vector<Row> seen_rows(rows.taps);
    Index count = 0;
    for (Index row = begin; row < end; ++row, ++count) {
      const Index slot = row % rows.taps * result;
      seen_rows[count] = {bests + slot, best_taps + slot,
                          static_cast<int32_t>((row + rows.before - i * rows.stride) * across)};
    }
    for_floats(result, [&](auto width, Index f) {
      auto best = load<width()>(seen_rows[0].best + f);
      auto tap = load<width()>(seen_rows[0].tap + f) + seen_rows[0].first_tap;
      for (Index r = 1; r < count; ++r) {
        const auto value = load<width()>(seen_rows[r].best + f);
        const auto better = value > best;
        best = better ? value : best;
        tap = better ? load<width()>(seen_rows[r].tap + f) + seen_rows[r].first_tap : tap;
      }
      store<width()>(taps + i * result + f, tap);
    });
  }
}

// Calls body(image, taps) for each image.
template <typename Body>
inline void with_maxima(const Pool& pool, const Geometry& at, const float* x, Images in, Images out, const Body& body) {
  parallel(pool, in.count, [&](Index image) {
    auto* taps = reinterpret_cast<int32_t*>(scratch(kPacked2, out.image_floats()));
    first_maxima(at, x + image * in.image_floats(), in, out, taps);
    body(image, taps);
  });
}

// Calls body(width, part, to, from) for vectors of the output floats of each part of a plan, and the input floats at
// their windows' origins.
template <typename Body>
inline void each_vector(const Plan& plan, const std::vector<Part>& parts, const Images& in, const Images& out,
                        const Body& body) {
  for (const Part& part : parts) {
    const bool joined = plan.in_column_step == 1 && plan.out_column_step == 1;
    const Index pixels = part.last_column - part.first_column;
    const Index steps = joined ? 1 : pixels, floats = joined ? pixels * in.channels : in.channels;
    for (Index i = part.first_row; i < part.last_row; ++i) {
      Index to = (part.phase->first_row + i * plan.out_row_step) * out.row_floats() +
                 (part.phase->first_column + part.first_column * plan.out_column_step) * in.channels;
      Index from = i * plan.in_row_step * in.row_floats() + part.first_column * plan.in_column_step * in.channels;
      for (Index j = 0; j < steps; ++j) {
        for_floats(floats, [&](auto width, Index f) { body(width, part, to + f, from + f); });
        to += plan.out_column_step * in.channels;
        from += plan.in_column_step * in.channels;
      }
    }
  }
}

// What each tap of a part adds: the offset of its floats, and its number.
inline std::vector<std::pair<Index, int32_t>> numbered(const Part& part, const Geometry& at, const Images& in) {
  std::vector<std::pair<Index, int32_t>> taps;
  for (const PartTap& tap : part.taps) {
    taps.push_back({tap.row * in.row_floats() + tap.column * in.channels,
                    static_cast<int32_t>(tap.kernel_row * at.columns.taps + tap.kernel_column)});
  }
  return taps;
}

inline void max_pool_dx(const Pool& pool, const Geometry& at, const float* x, Images in, const float* dy, Images out,
                        float* dx) {
  const Plan plan = gradient_plan(at);
  const std::vector<Part> parts = parts_of(plan, out, false);
  std::vector<std::vector<std::pair<Index, int32_t>>> taps_of;
  for (const Part& part : parts) taps_of.push_back(numbered(part, at, out));
  with_maxima(pool, at, x, in, out, [&](Index image, const int32_t* chosen) {
    float* to = dx + image * in.image_floats();
    const float* given = dy + image * out.image_floats();
    each_vector(plan, parts, out, in, [&](auto width, const Part& part, Index pixel, Index window) {
      auto sum = Vector<width()>{};
      for (auto [offset, number] : taps_of[&part - parts.data()]) {
        const auto mine = load<width()>(chosen + window + offset) == number;
        sum += mine ? load<width()>(given + window + offset) : Vector<width()>{};
      }
      store<width()>(to + pixel, sum);
    });
  });
}

inline void max_pool_gather(const Pool& pool, const Geometry& at, const float* x, Images in, const float* tangent,
                            Images out, float* y) {
  const Plan plan = forward_plan(at);
  const std::vector<Part> parts = parts_of(plan, in, false);
  std::vector<std::vector<std::pair<Index, int32_t>>> taps_of;
  for (const Part& part : parts) taps_of.push_back(numbered(part, at, in));
  with_maxima(pool, at, x, in, out, [&](Index image, const int32_t* chosen) {
    float* to = y + image * out.image_floats();
    const float* given = tangent + image * in.image_floats();
    each_vector(plan, parts, in, out, [&](auto width, const Part& part, Index window, Index pixel) {
      const auto mine = load<width()>(chosen + window);
      auto taken = Vector<width()>{};
      for (auto [offset, number] : taps_of[&part - parts.data()]) {
        taken = mine == number ? load<width()>(given + pixel + offset) : taken;
      }
      store<width()>(to + window, taken);
    });
  });
}

// ---- average ------------------------------------------------------------------------------------------------

// One over the pixels that window `at` counts along an axis.
inline float portion(const Axis& axis, Index at, Index whole) {
  if (whole == 2) return 1.0f;
  return 1.0f / static_cast<float>(whole ? axis.taps : axis.last(at) - axis.first(at));
}

inline void avg_pool(const Pool& pool, const Geometry& at, const float* x, Images in, float* y, Images out) {
  const Axis &rows = at.rows, &columns = at.columns;
  const Line shape(at, in);
  std::vector<float> portions;
  for (Index j = 0; j < out.columns; ++j) portions.push_back(portion(columns, j, at.whole));
  parallel(pool, in.count, [&](Index image) {
    float* line = scratch(kPacked, shape.floats);  // sum of each column of the window
    fill_floats(line, 0.0f, shape.floats);
    for (Index i = 0; i < out.rows; ++i) {
      const Index first = rows.first(i), count = rows.last(i) - first;
      const float* from = x + image * in.image_floats() + (i * rows.stride + first - rows.before) * shape.width;
      const float of_rows = portion(rows, i, at.whole);
      for_floats(shape.width, [&](auto width, Index f) {
        auto sum = load<width()>(from + f);
        for (Index r = 1; r < count; ++r) sum += load<width()>(from + f + r * shape.width);
        store<width()>(line + shape.edge + f, sum * of_rows);
      });
      float* to = y + image * out.image_floats() + i * out.row_floats();
      for (Index j = 0; j < out.columns; ++j, to += in.channels) {
        const float* seen = line + j * columns.stride * in.channels;
        for_floats(in.channels, [&](auto width, Index f) {
          auto sum = load<width()>(seen + f);
          for (Index c = 1; c < columns.taps; ++c) sum += load<width()>(seen + f + c * in.channels);
          store<width()>(to + f, sum * portions[j]);
        });
      }
    }
  });
}

inline void avg_pool_dx(const Pool& pool, const Geometry& at, const float* dy, Images out, float* dx, Images in) {
  const Axis &rows = at.rows, &columns = at.columns;
  const Line shape(at, in);
  std::vector<float> portions;
  for (Index j = 0; j < out.columns; ++j) portions.push_back(portion(columns, j, at.whole));
  parallel(pool, in.count, [&](Index image) {
    float* line = scratch(kPacked, shape.floats);  // what a row of windows gives each column of pixels
    float* to = dx + image * in.image_floats();
    fill_floats(to, 0.0f, in.image_floats());
    for (Index i = 0; i < out.rows; ++i) {
      fill_floats(line, 0.0f, shape.floats);
      const float* given = dy + image * out.image_floats() + i * out.row_floats();
      const float of_rows = portion(rows, i, at.whole);
      for (Index j = 0; j < out.columns; ++j, given += in.channels) {
        float* seen = line + j * columns.stride * in.channels;
        for_floats(in.channels, [&](auto width, Index f) {
          const auto part = load<width()>(given + f) * (of_rows * portions[j]);
          for (Index c = 0; c < columns.taps; ++c) {
            float* sum = seen + f + c * in.channels;
            store<width()>(sum, load<width()>(sum) + part);
          }
        });
      }
      for (Index r = rows.first(i); r < rows.last(i); ++r) {
        float* sum = to + (i * rows.stride + r - rows.before) * shape.width;
        for_floats(shape.width, [&](auto width, Index f) {
          store<width()>(sum + f, load<width()>(sum + f) + load<width()>(line + shape.edge + f));
        });
      }
    }
  });
}

}  // namespace nas
