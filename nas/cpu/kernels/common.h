// Vectors, threads, scratch memory and the geometry of windows, shared by all kernels.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace nas {

namespace ffi = xla::ffi;
using Index = std::ptrdiff_t;

// ---- vectors ----------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kWidth = 16;      // floats in the widest vector
constexpr int kRegisters = 28;  // of them, how many may hold sums
#elif defined(__AVX__)
constexpr int kWidth = 8;
constexpr int kRegisters = 12;
#elif defined(__aarch64__)
constexpr int kWidth = 4;
constexpr int kRegisters = 28;
#else
constexpr int kWidth = 4;
constexpr int kRegisters = 12;
#endif

template <int W>
struct VectorOf {
  typedef float type __attribute__((vector_size(W * sizeof(float))));
};
template <int W>
using Vector = typename VectorOf<W>::type;

template <int W>
inline Vector<W> load(const float* from) {
  Vector<W> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <int W>
inline void store(float* to, Vector<W> value) {
  std::memcpy(to, &value, sizeof value);
}

template <int W>
inline void store_lanes(float* to, Vector<W> value, int lanes) {
  std::memcpy(to, &value, lanes * sizeof(float));
}

// Calls body(width, i) for vectors that cover [0, count) floats, wide ones first.
template <typename Body>
inline void for_floats(Index count, const Body& body) {
  Index i = 0;
  for (; i + kWidth <= count; i += kWidth) body(std::integral_constant<int, kWidth>(), i);
  if constexpr (kWidth > 4) {
    for (; i + 4 <= count; i += 4) body(std::integral_constant<int, 4>(), i);
  }
  for (; i < count; ++i) body(std::integral_constant<int, 1>(), i);
}

// Blocks of W channels that cover all; the last one overlaps its neighbour rather than end early.
template <typename Body>
inline void channel_blocks(Index channels, const Body& body) {
  auto blocks = [&](auto width) {
    constexpr int W = decltype(width)::value;
    for (Index first = 0; first < channels; first += W) body(width, std::min(first, channels - W));
  };
  if (channels >= kWidth) return blocks(std::integral_constant<int, kWidth>());
#if defined(__AVX512F__)
  if (channels >= 8) return blocks(std::integral_constant<int, 8>());
#endif
  if (channels >= 4) return blocks(std::integral_constant<int, 4>());
  blocks(std::integral_constant<int, 1>());
}

// Rows of images are short: libc's copy takes a slow path for some of their lengths.
inline void copy_floats(float* to, const float* from, Index count) {
  for_floats(count, [&](auto width, Index i) { store<width()>(to + i, load<width()>(from + i)); });
}

inline void fill_floats(float* to, float value, Index count) {
  for_floats(count, [&](auto width, Index i) { store<width()>(to + i, Vector<width()>{} + value); });
}

// ---- threads ----------------------------------------------------------------------------------------------

// XLA's threads for the current call; none for a caller outside XLA.
struct Pool {
  ffi::ThreadPool* threads = nullptr;
  Index size() const { return threads == nullptr ? 1 : std::max<Index>(1, threads->num_threads()); }
};

// The one place that shares work: bodies come as a function and what it is called with, so that each is compiled once.
inline void share_out(const Pool& pool, Index count, void (*call)(const void*, Index), const void* body) {
  const Index helpers = std::min<Index>(count, pool.size()) - 1;
  const Index grain = std::clamp<Index>(count / (8 * (helpers + 1)), 1, 8);
  struct Progress {
    std::atomic<Index> next{0};
    std::atomic<Index> done{0};
  };
  auto progress = std::make_shared<Progress>();
  // A late task only touches `progress`: `body` is alive while any unit is unfinished.
  auto work = [=] {
    for (Index first; (first = progress->next.fetch_add(grain, std::memory_order_relaxed)) < count;) {
      const Index last = std::min(count, first + grain);
      for (Index i = first; i < last; ++i) call(body, i);
      progress->done.fetch_add(last - first, std::memory_order_release);
    }
  };
  for (Index i = 0; i < helpers; ++i) pool.threads->Schedule(decltype(work)(work));
  work();
  for (int spins = 0; progress->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

// Calls body(i) for i in [0, count), shared between this thread and the pool's, which take a few units in a row at a
// time. The caller takes every unit that no other thread has begun, so it never waits for a task the pool has not
// started: safe on a pool of one thread and from inside the pool.
template <typename Body>
void parallel(const Pool& pool, Index count, const Body& body) {
  share_out(pool, count, [](const void* it, Index i) { (*static_cast<const Body*>(it))(i); }, &body);
}

// Memory that lives as long as its thread, so that no call pays for fresh pages. One buffer a slot.
enum Slot { kPacked, kPacked2, kWeights, kPartial, kSlots };

inline float* scratch(Slot slot, Index floats) {
  struct Buffer {
    float* data = nullptr;
    Index size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffers[kSlots];
  Buffer& buffer = buffers[slot];
  if (buffer.size < floats) {
    std::free(buffer.data);
    const Index bytes = (floats * sizeof(float) + 4095) / 4096 * 4096;
    buffer.data = static_cast<float*>(std::aligned_alloc(4096, bytes));
    buffer.size = buffer.data == nullptr ? 0 : floats;
    if (buffer.data == nullptr) throw std::bad_alloc();
  }
  return buffer.data;
}

// Memory that will be read or written soon, asked for in parts while something else is computed: the processor's own
// prefetching stops at every page, and does not see stores coming.
template <bool kWrite>
struct Ahead {
  const float* from;
  Index floats;
  // `wanted` floats from `from`, of an array of `size` floats.
  Ahead(const float* array, Index size, const float* from, Index wanted)
      : from(from), floats(std::min(wanted, array + size - from)) {}
  void part(Index i, Index of) const {
    constexpr Index kLine = 16;
    for (Index f = floats * i / of; f < floats * (i + 1) / of; f += kLine) __builtin_prefetch(from + f, kWrite, 2);
  }
};

// ---- geometry ---------------------------------------------------------------------------------------------

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// One axis of the windows that slide over an image.
struct Axis {
  Index image, taps, stride, before, after, dilation;
  Index output() const { return (image + before + after - (taps - 1) * dilation - 1) / stride + 1; }
  // Taps [first, last) of window `at` that lie inside the image (dilation 1).
  Index first(Index at) const { return std::max<Index>(0, before - at * stride); }
  Index last(Index at) const { return std::min(taps, image + before - at * stride); }
};

struct Geometry {
  Axis rows, columns;
  Index groups, members, whole;

  // The order `native.call` writes.
  explicit Geometry(ffi::Span<const int64_t> at)
      : rows{at[0], at[2], at[4], at[6], at[7], at[10]},
        columns{at[1], at[3], at[5], at[8], at[9], at[11]},
        groups(at[12]),
        members(at[13]),
        whole(at[14]) {}
};

// Images in memory: [images, rows, columns, channels].
struct Images {
  Index count, rows, columns, channels;
  Images(Index count, Index rows, Index columns, Index channels)
      : count(count), rows(rows), columns(columns), channels(channels) {}
  explicit Images(const ffi::Buffer<ffi::F32>& buffer)
      : count(buffer.dimensions()[0]),
        rows(buffer.dimensions()[1]),
        columns(buffer.dimensions()[2]),
        channels(buffer.dimensions()[3]) {}
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
