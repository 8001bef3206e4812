// Arrays [..., channels] as rows of floats, and passes over them on several threads.
#pragma once

#include <cmath>
#include <numeric>

#include "handlers.h"

namespace nas {

constexpr Index kTask = 32768;  // floats a task handles
constexpr Index kFlush = 64;    // rows summed in float before the sum goes on in double

// An array as rows of `width` floats. Few channels repeat within a row, so that rows are whole vectors; the last row may
// then be shorter.
struct Rows {
  Index channels, total, width, count, per_task, tasks;

  Rows(Index channels, Index total) : channels(channels), total(total), width(channels) {
    if (channels < 64) {
      const Index whole = std::lcm<Index>(channels, kWidth);
      width = whole * ((63 + whole) / whole);
    }
    count = ceil_div(total, width);
    per_task = std::max<Index>(1, kTask / width);
    tasks = ceil_div(count, per_task);
  }
  Index padded() const { return ceil_div(width, kWidth) * kWidth; }
  Index begin(Index task) const { return task * per_task; }
  Index end(Index task) const { return std::min(count, (task + 1) * per_task); }
  Index width_of(Index row) const { return std::min(width, total - row * width); }

  // Sums a column, [tasks][sums][width], added over tasks and the copies of a channel: [sums][channels].
  std::vector<double> join(const double* columns, Index sums) const {
    std::vector<double> out(sums * channels);
    for (Index task = 0; task < tasks; ++task)
      for (Index k = 0; k < sums; ++k)
        for (Index copy = 0; copy < width; copy += channels, columns += channels)
          for (Index c = 0; c < channels; ++c) out[k * channels + c] += columns[c];
    return out;
  }
};

// Several values a channel, each repeated over the columns of a row; zeros for null.
class Repeated {
 public:
  Repeated(const Rows& rows, const std::vector<const float*>& values)
      : padded_(rows.padded()), all_(values.size() * padded_) {
    float* to = all_;
    for (const float* of : values)
      for (Index j = 0; j < padded_; ++j) *to++ = of && j < rows.width ? of[j % rows.channels] : 0.0f;
  }
  const float* operator[](Index i) const { return all_ + i * padded_; }

 private:
  const Index padded_;
  const Scratch<float> all_;
};

// Calls body(at, n) for the vectors of an array, n floats at position `at`. Here and below bodies that hold pointers by
// value are fastest: each task has a copy, which the compiler keeps in registers.
template <class Body>
void each_vector(const Pool& pool, Index size, const Body& body) {
  parallel(pool, ceil_div(size, kTask), [&](Index task) {
    const Body mine = body;
    const Index begin = task * kTask;
    for_vectors(std::min(kTask, size - begin), [&](Index j, int n) { mine(begin + j, n); });
  });
}

// Calls body(at, j, n) for the vectors of a task's rows: n floats at position `at` of the array, column j.
template <class Body>
void each_vector(const Rows& rows, Index task, const Body& body) {
  const Body mine = body;
  const Index width = rows.width, end = rows.end(task);
  for (Index row = rows.begin(task); row < end; ++row) {
    for_vectors(rows.width_of(row), [&](Index j, int n) { mine(row * width + j, j, n); });
  }
}

// The same for all tasks, from the end: what a pass before this one read last is still in the cache.
template <class Body>
void each_vector(const Pool& pool, const Rows& rows, const Body& body) {
  parallel(pool, rows.tasks, [&](Index task) { each_vector(rows, rows.tasks - 1 - task, body); });
}

// Sums a column over a task's rows, K of them: [K][width]. term(at, j, n, sums) adds to the K `sums` what the n floats
// at `at`, column j, contribute. Few rows are added before they meet the sums in memory.
template <int K, class Term>
void sum_columns(const Rows& rows, Index task, double* out, const Term& term) {
  const Term mine = term;
  const Index width = rows.width, padded = rows.padded();
  const Scratch<float> scratch(K * padded);
  float* running = scratch;
  const auto add = [&](Index row, int count, Index j, int n) __attribute__((always_inline)) {
    Vec sums[K];
    for (int k = 0; k < K; ++k) sums[k] = load(running + k * padded + j);
    for (int r = 0; r < count; ++r) mine((row + r) * width + j, j, n, sums);
    for (int k = 0; k < K; ++k) store(running + k * padded + j, sums[k]);
  };
  std::fill(out, out + K * width, 0.0);
  for (Index start = rows.begin(task); start < rows.end(task); start += kFlush) {
    const Index stop = std::min(rows.end(task), start + kFlush);
    std::fill(running, running + K * padded, 0.0f);
    Index row = start;
    for (; row + 4 <= stop && rows.width_of(row + 3) == width; row += 4) {
      for_vectors(width, [&](Index j, int n) { add(row, 4, j, n); });
    }
    for (; row < stop; ++row) {
      for_vectors(rows.width_of(row), [&](Index j, int n) { add(row, 1, j, n); });
    }
    for (int k = 0; k < K; ++k)
      for (Index j = 0; j < width; ++j) out[k * width + j] += running[k * padded + j];
  }
}

// The same sums a channel, over all rows: [K][channels].
template <int K, class Term>
std::vector<double> sum_channels(const Pool& pool, const Rows& rows, const Term& term) {
  const Scratch<double> columns(rows.tasks * K * rows.width);
  parallel(pool, rows.tasks, [&](Index task) {
    sum_columns<K>(rows, task, columns + task * K * rows.width, term);
  });
  return rows.join(columns, K);
}

// 1 / sqrt(variance + eps) of each channel.
inline std::vector<double> inverse_deviations(const float* variance, Index channels, double eps) {
  std::vector<double> inverse(channels);
  for (Index c = 0; c < channels; ++c) inverse[c] = 1.0 / std::sqrt(variance[c] + eps);
  return inverse;
}

}  // namespace nas
