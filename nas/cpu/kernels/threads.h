// Threads and their scratch memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace nas {

namespace ffi = xla::ffi;

// XLA's threads for the current call.
struct Pool {
  ffi::ThreadPool* threads;
  Index size() const { return std::max<Index>(1, threads->num_threads()); }
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
// started: safe on a pool of one thread and from inside the pool. Callers cut their work by shapes alone and add up in
// the order of units, so that results do not depend on the number of threads.
template <typename Body>
void parallel(const Pool& pool, Index count, const Body& body) {
  share_out(pool, count, [](const void* it, Index i) { (*static_cast<const Body*>(it))(i); }, &body);
}

// A thread's stack of buffers, which lives as long as the thread: no call pays for fresh pages.
class Buffers {
 public:
  ~Buffers() {
    for (const Buffer& buffer : all_) std::free(buffer.data);
  }
  void* push(std::size_t bytes) {
    if (used_ == all_.size()) all_.push_back({nullptr, 0});
    Buffer& buffer = all_[used_];
    if (buffer.bytes < bytes) {
      std::free(buffer.data);
      buffer.bytes = (bytes + 4095) / 4096 * 4096;
      buffer.data = std::aligned_alloc(4096, buffer.bytes);
      if (buffer.data == nullptr) {
        buffer.bytes = 0;
        throw std::bad_alloc();
      }
    }
    ++used_;
    return buffer.data;
  }
  void pop() { --used_; }
  static Buffers& of_thread() {
    thread_local Buffers buffers;
    return buffers;
  }

 private:
  struct Buffer {
    void* data;
    std::size_t bytes;
  };
  std::vector<Buffer> all_;
  std::size_t used_ = 0;
};

// `count` values that are not initialised, until the end of the scope.
template <typename T>
class Scratch {
 public:
  explicit Scratch(Index count) : data_(static_cast<T*>(Buffers::of_thread().push(count * sizeof(T)))) {}
  ~Scratch() { Buffers::of_thread().pop(); }
  Scratch(const Scratch&) = delete;
  operator T*() const { return data_; }

 private:
  T* const data_;
};

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

}  // namespace nas
