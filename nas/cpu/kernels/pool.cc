// Max and sum pooling, and the sums and selections that their derivatives are.

#include <limits>

#include "plan.h"

namespace nas {
namespace {

// Stretches of windows whose floats lie as far apart in the image as in the result. Where columns have stride 1 a row
// of windows is one stretch, whatever the number of channels.
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

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// ---- each window joined to one value ------------------------------------------------------------------------

struct Larger {
  static constexpr float kNothing = kLowest;
  template <typename V>
  static V join(V best, V value) {  // NaN wins, as in XLA
    return ((value > best) | (value != value)) ? value : best;
  }
};
struct Plus {
  static constexpr float kNothing = 0.0f;
  template <typename V>
  static V join(V sum, V value) { return sum + value; }
};

// Windows separate: first the columns of a window, then its row. x -> y
template <typename Join>
void join_windows(const Call& call) {
  const Geometry at(call.integers("at"));
  const Images in(call.shape(0)), out(call.result_shape(0));
  const Axis &rows = at.rows, &columns = at.columns;
  const float* x = call.arg(0);
  float* y = call.result(0);
  const Line shape(at, in);
  const Stretches stretches(at, out);
  parallel(call.pool, in.count, [&](Index image) {
    const Scratch<float> scratch(shape.floats);
    float* const line = scratch;  // the columns of a row of windows, each joined
    const Index taps = columns.taps, channels = in.channels, edge = shape.edge, across = shape.width;
    fill_floats(line, Join::kNothing, shape.floats);
    for (Index i = 0; i < out.rows; ++i) {
      const Index first = rows.first(i), count = rows.last(i) - first;
      const float* from = x + image * in.image_floats() + (i * rows.stride + first - rows.before) * shape.width;
      for_floats(across, [&](auto width, Index f) {
        auto value = load<width()>(from + f);
        for (Index r = 1; r < count; ++r) value = Join::join(value, load<width()>(from + f + r * across));
        store<width()>(line + edge + f, value);
      });
      float* to = y + image * out.image_floats() + i * out.row_floats();
      for (Index j = 0; j < stretches.count; ++j, to += stretches.floats) {
        const float* seen = line + j * stretches.in_step;
        for_floats(stretches.floats, [&](auto width, Index f) {
          auto value = load<width()>(seen + f);
          for (Index c = 1; c < taps; ++c) value = Join::join(value, load<width()>(seen + f + c * channels));
          store<width()>(to + f, value);
        });
      }
    }
  });
}

void max_pool(const Call& call) { join_windows<Larger>(call); }
void sum_pool(const Call& call) { join_windows<Plus>(call); }

// ---- the first maximum of each window -----------------------------------------------------------------------

// The tap (row * columns + column) of each window's first maximum, for all windows of one image: first along rows,
// then down, so that of equal values the upper, then the left one stays.
void first_maxima(const Geometry& at, const float* x, const Images& in, const Images& out, int32_t* taps) {
  const Axis &rows = at.rows, &columns = at.columns;
  const Line shape(at, in);
  const Stretches stretches(at, out);
  const int32_t across = static_cast<int32_t>(columns.taps);
  const Index result = out.row_floats();
  const Scratch<float> line(shape.floats);
  // Lines of the image as windows' columns see them, as many as a window has rows: they stay in the first cache.
  const Scratch<float> bests(rows.taps * result);
  const Scratch<int32_t> best_taps(rows.taps * result);
  fill_floats(line, kLowest, shape.floats);
  Index ready = 0;  // rows of the image seen so far
  struct Row {
    const float* best;
    const int32_t* tap;
    int32_t first_tap;
  };
  std::vector<Row> seen_rows(rows.taps);
  for (Index i = 0; i < out.rows; ++i) {
    const Index origin = i * rows.stride - rows.before, begin = origin + rows.first(i), end = origin + rows.last(i);
    for (Index row = std::max(ready, begin); row < end; ++row) {
      copy_floats(line + shape.edge, x + row * shape.width, shape.width);
      float* best_to = bests + row % rows.taps * result;
      int32_t* tap_to = best_taps + row % rows.taps * result;
      for (Index j = 0; j < stretches.count; ++j, best_to += stretches.floats, tap_to += stretches.floats) {
        const float* seen = line + j * stretches.in_step;
        for_floats(stretches.floats, [&](auto width, Index f) {
          auto best = load<width()>(seen + f);
          auto tap = Vector<width(), int32_t>{};
          for (int32_t c = 1; c < across; ++c) {
            const auto value = load<width()>(seen + f + c * in.channels);
            const auto better = value > best;
            best = better ? value : best;
            tap = better ? Vector<width(), int32_t>{} + c : tap;
          }
          store<width()>(best_to + f, best);
          store<width()>(tap_to + f, tap);
        });
      }
    }
    ready = std::max(ready, end);
    for (Index row = begin; row < end; ++row) {
      const Index slot = row % rows.taps * result;
      seen_rows[row - begin] = {bests + slot, best_taps + slot, static_cast<int32_t>((row - origin) * across)};
    }
    for_floats(result, [&](auto width, Index f) {
      auto best = load<width()>(seen_rows[0].best + f);
      auto tap = load<width()>(seen_rows[0].tap + f) + seen_rows[0].first_tap;
      for (Index r = 1; r < end - begin; ++r) {
        const auto value = load<width()>(seen_rows[r].best + f);
        const auto better = value > best;
        best = better ? value : best;
        tap = better ? load<width()>(seen_rows[r].tap + f) + seen_rows[r].first_tap : tap;
      }
      store<width()>(taps + i * result + f, tap);
    });
  }
}

// ---- what a plan's taps see ---------------------------------------------------------------------------------

// Windows [first, last) of an axis that see the same taps [first_tap, last_tap).
struct Segment {
  Index first, last;
  std::size_t first_tap, last_tap;
};

// The segments of `windows` windows on an axis of `size` pixels.
std::vector<Segment> segments_of(const std::vector<Tap>& taps, Index windows, Index step, Index size) {
  if (taps.empty()) return {{0, windows, 0, 0}};
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

std::vector<Part> parts_of(const Plan& plan, const Images& in) {
  std::vector<Part> parts;
  for (const Phase& phase : plan.phases) {
    for (const Segment& down : segments_of(phase.down, phase.rows, plan.in_row_step, in.rows)) {
      for (const Segment& across : segments_of(phase.across, phase.columns, plan.in_column_step, in.columns)) {
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

// The pixels of a plan's output, with the taps that each sees.
class Scan {
 public:
  struct Seen {
    Index offset;  // of its floats, from the window's origin
    int32_t number;
  };

  Scan(const Plan& plan, const Geometry& at, const Images& in, const Images& out)
      : plan_(plan), in_(in), out_(out), parts_(parts_of(plan_, in)), taps_(parts_.size()) {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      for (const PartTap& tap : parts_[i].taps) {
        taps_[i].push_back({tap.row * in.row_floats() + tap.column * in.channels,
                            static_cast<int32_t>(tap.kernel_row * at.columns.taps + tap.kernel_column)});
      }
    }
  }
  Scan(const Scan&) = delete;  // its parts point into its plan

  // Calls body(width, to, from, taps) for vectors of an image's output floats, and the input floats at their windows'
  // origins.
  template <typename Body>
  void each(const Body& given) const {
    const Body body = given;
    const bool joined = plan_.in_column_step == 1 && plan_.out_column_step == 1;
    for (std::size_t p = 0; p < parts_.size(); ++p) {
      const Part& part = parts_[p];
      const Index pixels = part.last_column - part.first_column;
      const Index steps = joined ? 1 : pixels, floats = joined ? pixels * in_.channels : in_.channels;
      for (Index i = part.first_row; i < part.last_row; ++i) {
        Index to = (part.phase->first_row + i * plan_.out_row_step) * out_.row_floats() +
                   (part.phase->first_column + part.first_column * plan_.out_column_step) * in_.channels;
        Index from = i * plan_.in_row_step * in_.row_floats() + part.first_column * plan_.in_column_step * in_.channels;
        for (Index j = 0; j < steps; ++j) {
          for_floats(floats, [&](auto width, Index f) { body(width, to + f, from + f, taps_[p]); });
          to += plan_.out_column_step * in_.channels;
          from += plan_.in_column_step * in_.channels;
        }
      }
    }
  }

 private:
  const Plan plan_;
  const Images in_, out_;
  const std::vector<Part> parts_;
  std::vector<std::vector<Seen>> taps_;
};

// x, dy -> dx: each window gives its cotangent to its first maximum
void max_pool_dx(const Call& call) {
  const Geometry at(call.integers("at"));
  const Images in(call.shape(0)), out(call.shape(1));
  const float *x = call.arg(0), *dy = call.arg(1);
  float* dx = call.result(0);
  const Scan scan(gradient_plan(at), at, out, in);
  parallel(call.pool, in.count, [&](Index image) {
    const Scratch<int32_t> scratch(out.image_floats());
    int32_t* chosen = scratch;
    first_maxima(at, x + image * in.image_floats(), in, out, chosen);
    const float* given = dy + image * out.image_floats();
    float* to = dx + image * in.image_floats();
    scan.each([=](auto width, Index pixel, Index window, const auto& taps) {
      auto sum = Vector<width()>{};
      for (auto [offset, number] : taps) {
        const auto mine = load<width()>(chosen + window + offset) == number;
        sum += mine ? load<width()>(given + window + offset) : Vector<width()>{};
      }
      store<width()>(to + pixel, sum);
    });
  });
}

// x, t -> y: each window takes what t has where x has its first maximum
void max_pool_gather(const Call& call) {
  const Geometry at(call.integers("at"));
  const Images in(call.shape(0)), out(call.result_shape(0));
  const float *x = call.arg(0), *t = call.arg(1);
  float* y = call.result(0);
  const Scan scan(forward_plan(at), at, in, out);
  parallel(call.pool, in.count, [&](Index image) {
    const Scratch<int32_t> scratch(out.image_floats());
    int32_t* chosen = scratch;
    first_maxima(at, x + image * in.image_floats(), in, out, chosen);
    const float* given = t + image * in.image_floats();
    float* to = y + image * out.image_floats();
    scan.each([=](auto width, Index window, Index pixel, const auto& taps) {
      const auto mine = load<width()>(chosen + window);
      auto taken = Vector<width()>{};
      for (auto [offset, number] : taps) {
        taken = mine == number ? load<width()>(given + pixel + offset) : taken;
      }
      store<width()>(to + window, taken);
    });
  });
}

}  // namespace
}  // namespace nas

NAS_HANDLER(max_pool);
NAS_HANDLER(max_pool_dx);
NAS_HANDLER(max_pool_gather);
NAS_HANDLER(sum_pool);
