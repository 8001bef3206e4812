// Everything in a training step that is not a convolution or a pool: normalisation, activation, dense layers,
// the loss, the optimiser and the input pipeline. float32, channels last, several threads.
//
// Each kernel reads its memory as few times as it can. Work is cut into tasks whose size depends on the shapes
// alone and sums are joined in the order of the tasks, so results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <numeric>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "common.h"

namespace {

namespace ffi = xla::ffi;

// ------------------------------------------------------------------------------------------------ vectors

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * VL)));
typedef int32_t Int __attribute__((vector_size(4 * VL)));
typedef float Loose __attribute__((vector_size(4 * VL), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
inline Vec splat(float s) { return Vec{} + s; }

// The first n lanes; the others read as zero and are not written.
inline Vec load(const float* p, int n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  Vec v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
inline void store(float* p, Vec v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

inline Vec keep(Vec v, int n) {  // zero beyond the first n lanes
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  for (int i = n; i < VL; ++i) v[i] = 0.0f;
  return v;
#endif
}

inline float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s[VL];
  std::memcpy(s, &v, sizeof v);
  for (int width = VL / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
#endif
}
inline float largest(Vec v) {
  float s = v[0];
  for (int i = 1; i < VL; ++i) s = v[i] > s ? v[i] : s;
  return s;
}
inline Vec root(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)v);
#else
  for (int i = 0; i < VL; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// e^v and e^v - 1 (Cephes' expf: range reduction by ln 2 in two parts, polynomial of degree 7). NaN stays NaN.
struct Exponential {
  Vec power;    // 2^n
  Vec residue;  // e^r - 1
  explicit Exponential(Vec v) {
    v = v < -87.3f ? splat(-87.3f) : v;
    v = v > 88.3f ? splat(88.3f) : v;
    const Vec n = (v * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // to the nearest integer
    Vec r = v - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    residue = p * (r * r) + r;
    const Int bits = (__builtin_convertvector(n, Int) + 127) << 23;
    std::memcpy(&power, &bits, sizeof power);
  }
};
inline Vec exp(Vec v) {
  const Exponential e(v);
  return e.power * e.residue + e.power;
}
inline Vec expm1(Vec v) {
  const Exponential e(v);
  return e.power * e.residue + (e.power - 1.0f);
}
inline Vec sigmoid(Vec v) { return 1.0f / (1.0f + exp(-v)); }
inline Vec tanh(Vec v) {  // Cephes' tanhf
  const Vec square = v * v;
  Vec p = splat(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vec small = p * square * v + v;
  const Vec size = v < 0.0f ? -v : v;
  const Vec far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  return size < 0.625f ? small : (v < 0.0f ? -far : far);
}

// -------------------------------------------------------------------------------------------- activations

// value(z); slope(z) = d value / dz; where from_output, slope_at(value(z)) = slope(z) and z need not be kept.
// Comparisons are written so that NaN passes through.
struct Identity {
  static constexpr bool from_output = true;
  static Vec value(Vec z) { return z; }
  static Vec slope(Vec) { return splat(1.0f); }
  static Vec slope_at(Vec) { return splat(1.0f); }
};
struct Relu {
  static constexpr bool from_output = true;
  static Vec value(Vec z) { return z < 0.0f ? Vec{} : z; }
  static Vec slope(Vec z) { return z > 0.0f ? splat(1.0f) : Vec{}; }
  static Vec slope_at(Vec y) { return slope(y); }
};
struct Relu6 {
  static constexpr bool from_output = true;
  static Vec value(Vec z) {
    z = z < 0.0f ? Vec{} : z;
    return z > 6.0f ? splat(6.0f) : z;
  }
  static Vec slope(Vec z) { return z > 0.0f ? (z < 6.0f ? splat(1.0f) : Vec{}) : Vec{}; }
  static Vec slope_at(Vec y) { return slope(y); }
};
struct LeakyRelu {
  static constexpr bool from_output = true;
  static Vec value(Vec z) { return z < 0.0f ? z * 0.01f : z; }
  static Vec slope(Vec z) { return z < 0.0f ? splat(0.01f) : splat(1.0f); }
  static Vec slope_at(Vec y) { return slope(y); }
};
struct Elu {
  static constexpr bool from_output = true;
  static Vec value(Vec z) { return z > 0.0f ? z : expm1(z); }
  static Vec slope(Vec z) { return z > 0.0f ? splat(1.0f) : exp(z); }
  static Vec slope_at(Vec y) { return y > 0.0f ? splat(1.0f) : y + 1.0f; }
};
struct Tanh {
  static constexpr bool from_output = true;
  static Vec value(Vec z) { return tanh(z); }
  static Vec slope(Vec z) { return slope_at(tanh(z)); }
  static Vec slope_at(Vec y) { return 1.0f - y * y; }
};
struct Sigmoid {
  static constexpr bool from_output = true;
  static Vec value(Vec z) { return sigmoid(z); }
  static Vec slope(Vec z) { return slope_at(sigmoid(z)); }
  static Vec slope_at(Vec y) { return y * (1.0f - y); }
};
struct Gelu {  // z/2 (1 + tanh u) = z sigmoid(2u), u = sqrt(2/pi) (z + 0.044715 z^3)
  static constexpr bool from_output = false;
  static Vec gate(Vec z) { return sigmoid(z * (1.5957691216057308f + 0.07135481282052708f * (z * z))); }
  static Vec value(Vec z) { return z * gate(z); }
  static Vec slope(Vec z) {
    const Vec g = gate(z);
    return g + z * g * (1.0f - g) * (1.5957691216057308f + 0.21406443846158125f * (z * z));
  }
  static Vec slope_at(Vec) { return Vec{}; }
};
struct Silu {
  static constexpr bool from_output = false;
  static Vec value(Vec z) { return z * sigmoid(z); }
  static Vec slope(Vec z) {
    const Vec s = sigmoid(z);
    return s + z * s * (1.0f - s);
  }
  static Vec slope_at(Vec) { return Vec{}; }
};
struct HardSwish {
  static constexpr bool from_output = false;
  static Vec value(Vec z) { return z * Relu6::value(z + 3.0f) * (1.0f / 6.0f); }
  static Vec slope(Vec z) {
    const Vec inside = z * (1.0f / 3.0f) + 0.5f;
    return z <= -3.0f ? Vec{} : (z < 3.0f ? inside : splat(1.0f));
  }
  static Vec slope_at(Vec) { return Vec{}; }
};

// One of the others, called through pointers: a call costs little beside an exponential, and each kernel is then
// compiled for three activations rather than ten.
struct Other {
  Vec (*value)(Vec);
  Vec (*slope)(Vec);
  Vec (*slope_at)(Vec);
  bool from_output;
};
template <class Act>
Other other() { return {Act::value, Act::slope, Act::slope_at, Act::from_output}; }

inline Other other(int64_t kind) {  // the order of ACTIVATIONS in fused.py
  switch (kind) {
    case 2: return other<Relu6>();
    case 3: return other<LeakyRelu>();
    case 4: return other<Elu>();
    case 5: return other<Tanh>();
    case 6: return other<Sigmoid>();
    case 7: return other<Gelu>();
    case 8: return other<Silu>();
    default: return other<HardSwish>();
  }
}

template <class Body>
void with_activation(int64_t kind, const Body& body) {
  if (kind == 0) return body(Identity{});
  if (kind == 1) return body(Relu{});
  body(other(kind));
}

// ------------------------------------------------------------------------------------- threads and memory

struct Task {
  void (*run)(const void*, int64_t);
  const void* body;
  void operator()(int64_t i) const { run(body, i); }
};
inline void share(const nas::Pool& pool, int64_t tasks, Task task) { nas::parallel(pool, tasks, task); }

// body(task) for every task, on several threads; compiled once, where nas::parallel would copy the body thrice.
template <class Body>
void on_threads(const nas::Pool& pool, int64_t tasks, const Body& body) {
  share(pool, tasks, {[](const void* data, int64_t task) { (*static_cast<const Body*>(data))(task); }, &body});
}

// Memory that is given back to be used again: fresh pages cost more than the work done in them.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex());
      auto& free = kept();
      size_t best = free.size();
      for (size_t i = 0; i < free.size(); ++i)
        if (free[i].size() >= bytes && (best == free.size() || free[i].size() < free[best].size())) best = i;
      if (best < free.size()) {
        block_ = std::move(free[best]);
        free.erase(free.begin() + best);
      }
    }
    if (block_.size() < bytes) block_ = std::vector<Line>((bytes + sizeof(Line) - 1) / sizeof(Line));
  }
  ~Scratch() {
    std::lock_guard<std::mutex> lock(mutex());
    if (kept().size() < 32) kept().push_back(std::move(block_));
  }
  Scratch(const Scratch&) = delete;
  template <class T>
  T* as() { return reinterpret_cast<T*>(block_.data()); }

 private:
  struct alignas(64) Line { char bytes[64]; };
  std::vector<Line> block_;
  static std::mutex& mutex() { static std::mutex m; return m; }
  static std::vector<std::vector<Line>>& kept() { static auto* v = new std::vector<std::vector<Line>>; return *v; }
};


// ------------------------------------------------------------------------------------ arguments of a call

// The buffers and attributes of one custom call. fused.py passes what the kernel expects: nothing is checked here.
struct Call {
  nas::Pool pool;
  ffi::RemainingArgs& in;
  ffi::RemainingRets& out;
  ffi::Dictionary& attributes;

  // Not inlined: decoding is long, and there are many of these.
  __attribute__((noinline)) ffi::AnyBuffer buffer(size_t i) const { return *in.get<ffi::AnyBuffer>(i); }
  __attribute__((noinline)) void* target(size_t i) const { return (*out.get<ffi::AnyBuffer>(i))->untyped_data(); }
  __attribute__((noinline)) int64_t integer(const char* name) const { return *attributes.get<int64_t>(name); }
  __attribute__((noinline)) double real(const char* name) const { return *attributes.get<double>(name); }

  template <class T = float>
  const T* arg(size_t i) const { return static_cast<const T*>(buffer(i).untyped_data()); }
  template <class T = float>
  T* result(size_t i) const { return static_cast<T*>(target(i)); }
  ffi::AnyBuffer::Dimensions shape(size_t i) const { return buffer(i).dimensions(); }
  int64_t size(size_t i) const { return buffer(i).element_count(); }
  int64_t last(size_t i) const { return shape(i).back(); }
};

// ----------------------------------------------------------------------------------- rows of the channels

constexpr int64_t kTask = 32768;  // floats a task handles
constexpr int64_t kFlush = 64;    // rows summed in float before the sum goes on in double

// An array [..., channels] as rows of `width` floats. Few channels repeat within a row, so that rows are whole
// vectors; the last row may then be shorter.
struct Rows {
  int64_t channels, total, width, count, per_task, tasks;

  Rows(int64_t channels, int64_t total) : channels(channels), total(total), width(channels) {
    if (channels < 64) {
      const int64_t whole = std::lcm<int64_t>(channels, VL);
      width = whole * ((63 + whole) / whole);
    }
    count = (total + width - 1) / width;
    per_task = std::max<int64_t>(1, kTask / width);
    tasks = (count + per_task - 1) / per_task;
  }
  int64_t padded() const { return (width + VL - 1) / VL * VL; }
  int64_t begin(int64_t task) const { return task * per_task; }
  int64_t end(int64_t task) const { return std::min(count, (task + 1) * per_task); }
  // Second passes run from the end: what the first one read last is still in the cache.
  int64_t last(int64_t task) const { return tasks - 1 - task; }
  int64_t width_of(int64_t row) const { return std::min(width, total - row * width); }
  // A value a channel, repeated over a row; `missing` where there are none.
  void repeat(const float* values, float missing, float* out) const {
    for (int64_t i = 0; i < padded(); ++i) out[i] = values && i < width ? values[i % channels] : missing;
  }
  // Sums over tasks of columns, then over the copies of a channel. columns: [tasks][stride] from `offset`.
  void join(const double* columns, int64_t stride, double* out) const {
    std::fill(out, out + channels, 0.0);
    for (int64_t task = 0; task < tasks; ++task)
      for (int64_t copy = 0; copy < width; copy += channels)
        for (int64_t c = 0; c < channels; ++c) out[c] += columns[task * stride + copy + c];
  }
};

// Two sums a column over the rows of a task. term(at, j, n, a, b) adds what the n floats at flat position `at`,
// column j, contribute. Within a group of rows the terms are added before they meet the running sum.
template <class Term>
void sum_columns(const Rows& rows, int64_t task, double* first, double* second, const Term& term) {
  const int64_t padded = rows.padded();
  Scratch scratch(2 * padded * sizeof(float));
  float *a = scratch.as<float>(), *b = a + padded;
  std::fill(first, first + rows.width, 0.0);
  std::fill(second, second + rows.width, 0.0);
  const int64_t end = rows.end(task);
  for (int64_t start = rows.begin(task); start < end; start += kFlush) {
    const int64_t stop = std::min(end, start + kFlush);
    std::fill(a, a + 2 * padded, 0.0f);
    int64_t row = start;
    const int64_t whole = rows.width / VL * VL;
    for (; row + 4 <= stop && rows.width_of(row + 3) == rows.width; row += 4) {
      const int64_t at = row * rows.width;
      for (int64_t j = 0; j < whole; j += VL) {
        Vec s = load(a + j), t = load(b + j);
        for (int r = 0; r < 4; ++r) term(at + r * rows.width + j, j, VL, s, t);
        store(a + j, s);
        store(b + j, t);
      }
      if (whole < rows.width) {
        Vec s = load(a + whole), t = load(b + whole);
        for (int r = 0; r < 4; ++r)
          term(at + r * rows.width + whole, whole, static_cast<int>(rows.width - whole), s, t);
        store(a + whole, s);
        store(b + whole, t);
      }
    }
    for (; row < stop; ++row) {
      const int64_t at = row * rows.width, width = rows.width_of(row);
      for (int64_t j = 0; j < width; j += VL) {
        Vec s = load(a + j), t = load(b + j);
        term(at + j, j, static_cast<int>(std::min<int64_t>(VL, width - j)), s, t);
        store(a + j, s);
        store(b + j, t);
      }
    }
    for (int64_t j = 0; j < rows.width; ++j) {
      first[j] += a[j];
      second[j] += b[j];
    }
  }
}

// body(at, j, n) for every vector of a task's rows.
template <class Body>
void each_vector(const Rows& rows, int64_t task, const Body& body) {
  for (int64_t row = rows.begin(task); row < rows.end(task); ++row) {
    const int64_t at = row * rows.width, width = rows.width_of(row);
    int64_t j = 0;
    for (; j + VL <= width; j += VL) body(at + j, j, VL);
    if (j < width) body(at + j, j, static_cast<int>(width - j));
  }
}
inline Vec get(const float* p, int n) { return n == VL ? load(p) : load(p, n); }
inline void put(float* p, Vec v, int n) { n == VL ? store(p, v) : store(p, v, n); }

// y = act((x - mean) * scale + shift + residual); each parameter is one value a channel, or absent.
void affine(Call& call, const Rows& rows, const float* x, const float* mean, const float* scale, const float* shift,
            const float* residual, int64_t activation, float* y) {
  const int64_t padded = rows.padded();
  Scratch scratch(3 * padded * sizeof(float));
  float *m = scratch.as<float>(), *a = m + padded, *b = a + padded;
  rows.repeat(mean, 0.0f, m);
  rows.repeat(scale, 1.0f, a);
  rows.repeat(shift, 0.0f, b);
  with_activation(activation, [&](auto act) {
    if (residual) {
      on_threads(call.pool, rows.tasks, [&](int64_t task) {
        each_vector(rows, rows.last(task), [&](int64_t at, int64_t j, int n) {
          const Vec z = (get(x + at, n) - load(m + j)) * load(a + j) + load(b + j);
          put(y + at, act.value(z + get(residual + at, n)), n);
        });
      });
    } else {
      on_threads(call.pool, rows.tasks, [&](int64_t task) {
        each_vector(rows, rows.last(task), [&](int64_t at, int64_t j, int n) {
          const Vec z = (get(x + at, n) - load(m + j)) * load(a + j) + load(b + j);
          put(y + at, act.value(z), n);
        });
      });
    }
  });
}

// Through the activation of `affine` backward: g = dy * act'. `kept` is the output where the slope follows from it,
// else the residual; absent where there was no residual. Sums a channel: g and g * (x - mean), unless null. `dx` =
// g * scale and `dresidual` = g where asked for.
void affine_backward(Call& call, const Rows& rows, const float* dy, const float* x, const float* mean,
                     const float* scale, const float* shift, const float* kept, int64_t activation, double* sum_g,
                     double* sum_gx, float* dx, float* dresidual) {
  const int64_t padded = rows.padded(), width = rows.width;
  Scratch scratch(3 * padded * sizeof(float)), sums(rows.tasks * 2 * width * sizeof(double));
  float *m = scratch.as<float>(), *a = m + padded, *b = a + padded;
  double* partial = sums.as<double>();
  rows.repeat(mean, 0.0f, m);
  rows.repeat(scale, 1.0f, a);
  rows.repeat(shift, 0.0f, b);
  with_activation(activation, [&](auto act) {
    const auto run = [&](auto gradient) {
      on_threads(call.pool, rows.tasks, [&](int64_t task) {
        if (!sum_g) {
          each_vector(rows, task, [&](int64_t at, int64_t j, int n) {
            const Vec g = gradient(at, j, n, get(x + at, n) - load(m + j));
            put(dx + at, g * load(a + j), n);
            if (dresidual) put(dresidual + at, g, n);
          });
          return;
        }
        double* mine = partial + task * 2 * width;
        sum_columns(rows, task, mine, mine + width, [&](int64_t at, int64_t j, int n, Vec& s, Vec& t) {
          const Vec centred = get(x + at, n) - load(m + j);
          const Vec g = gradient(at, j, n, centred);
          if (dx) put(dx + at, g * load(a + j), n);
          if (dresidual) put(dresidual + at, g, n);
          s += g;
          t += g * centred;
        });
      });
    };
    if (!kept) {
      run([&](int64_t at, int64_t j, int n, Vec centred) {
        return get(dy + at, n) * act.slope(centred * load(a + j) + load(b + j));
      });
    } else if (act.from_output) {
      run([&](int64_t at, int64_t, int n, Vec) { return get(dy + at, n) * act.slope_at(get(kept + at, n)); });
    } else {
      run([&](int64_t at, int64_t j, int n, Vec centred) {
        return get(dy + at, n) * act.slope(centred * load(a + j) + load(b + j) + get(kept + at, n));
      });
    }
  });
  if (!sum_g) return;
  rows.join(partial, 2 * width, sum_g);
  rows.join(partial + width, 2 * width, sum_gx);
}

// ------------------------------------------------------------------------------------ batch normalisation

// Mean and biased variance of each channel. Sums are taken about a rough mean, of rows spread over the batch: squares
// then lose nothing to cancellation.
void statistics(const nas::Pool& pool, const Rows& rows, const float* x, float* mean, float* variance) {
  const int64_t channels = rows.channels, images = rows.total / channels, width = rows.width;
  std::vector<double> s(channels), t(channels);
  const int64_t sampled = std::min<int64_t>(images, 64);
  for (int64_t i = 0; i < sampled; ++i)
    for (int64_t c = 0; c < channels; ++c) s[c] += x[i * images / sampled * channels + c];
  std::vector<float> rough(channels);
  for (int64_t c = 0; c < channels; ++c) rough[c] = static_cast<float>(s[c] / sampled);

  Scratch pivots(rows.padded() * sizeof(float)), sums(rows.tasks * 2 * width * sizeof(double));
  float* pivot = pivots.as<float>();
  double* partial = sums.as<double>();
  rows.repeat(rough.data(), 0.0f, pivot);
  on_threads(pool, rows.tasks, [&](int64_t task) {
    double* mine = partial + task * 2 * width;
    sum_columns(rows, task, mine, mine + width, [&](int64_t at, int64_t j, int n, Vec& a, Vec& b) {
      const Vec v = keep(get(x + at, n) - load(pivot + j), n);
      a += v;
      b += v * v;
    });
  });
  rows.join(partial, 2 * width, s.data());
  rows.join(partial + width, 2 * width, t.data());
  for (int64_t c = 0; c < channels; ++c) {
    const double offset = s[c] / images, spread = t[c] / images - offset * offset;
    mean[c] = static_cast<float>(rough[c] + offset);
    variance[c] = static_cast<float>(spread < 0 ? 0 : spread);
  }
}

// x -> mean, variance
ffi::Error moments(Call call) {
  statistics(call.pool, Rows(call.last(0), call.size(0)), call.arg(0), call.result(0), call.result(1));
  return ffi::Error::Success();
}

// x, scale, bias [, residual] -> y, mean, variance
ffi::Error batch_norm(Call call) {
  const int64_t channels = call.last(0);
  const Rows rows(channels, call.size(0));
  const float* x = call.arg(0);
  const bool residual = call.in.size() == 4;
  float *mean = call.result(1), *variance = call.result(2);
  statistics(call.pool, rows, x, mean, variance);
  std::vector<float> gain(channels);
  for (int64_t c = 0; c < channels; ++c)
    gain[c] = static_cast<float>(call.arg(1)[c] / std::sqrt(variance[c] + call.real("eps")));
  affine(call, rows, x, mean, gain.data(), call.arg(2), residual ? call.arg(3) : nullptr, call.integer("activation"),
         call.result(0));
  return ffi::Error::Success();
}

// dy, x, mean, variance, scale, bias [, kept] -> dx, dscale, dbias [, dresidual]
ffi::Error batch_norm_backward(Call call) {
  const int64_t channels = call.last(0), activation = call.integer("activation");
  const Rows rows(channels, call.size(0));
  const int64_t images = rows.total / channels;
  const float *dy = call.arg(0), *x = call.arg(1), *mean = call.arg(2), *bias = call.arg(5);
  const float* kept = call.in.size() == 7 ? call.arg(6) : nullptr;
  float *dx = call.result(0), *dresidual = call.out.size() == 4 ? call.result(3) : nullptr;
  std::vector<float> gain(channels), from_x(channels), constant(channels);
  std::vector<double> inverse(channels), s(channels), t(channels);
  for (int64_t c = 0; c < channels; ++c) {
    inverse[c] = 1.0 / std::sqrt(call.arg(3)[c] + call.real("eps"));
    gain[c] = static_cast<float>(call.arg(4)[c] * inverse[c]);
  }
  // What went through the activation is kept for the second pass where computing it again costs more.
  float* through = dresidual ? dresidual : activation > 1 ? dx : nullptr;
  affine_backward(call, rows, dy, x, mean, gain.data(), bias, kept, activation, s.data(), t.data(), nullptr, through);

  // dx = gain * (g - mean of g - (x - mean) * mean of g (x - mean) / variance)
  for (int64_t c = 0; c < channels; ++c) {
    call.result(1)[c] = static_cast<float>(t[c] * inverse[c]);
    call.result(2)[c] = static_cast<float>(s[c]);
    from_x[c] = static_cast<float>(-t[c] / images * inverse[c] * inverse[c] * gain[c]);
    constant[c] = static_cast<float>(-s[c] / images * gain[c]);
  }
  const int64_t padded = rows.padded();
  Scratch scratch(5 * padded * sizeof(float));
  float *m = scratch.as<float>(), *a = m + padded, *b = a + padded, *p = b + padded, *q = p + padded;
  rows.repeat(mean, 0.0f, m);
  rows.repeat(gain.data(), 1.0f, a);
  rows.repeat(bias, 0.0f, b);
  rows.repeat(from_x.data(), 0.0f, p);
  rows.repeat(constant.data(), 0.0f, q);
  const auto second_pass = [&](auto gradient) {
    on_threads(call.pool, rows.tasks, [&](int64_t task) {
      each_vector(rows, rows.last(task), [&](int64_t at, int64_t j, int n) {
        const Vec centred = get(x + at, n) - load(m + j);
        put(dx + at, gradient(at, j, n, centred) * load(a + j) + (centred * load(p + j) + load(q + j)), n);
      });
    });
  };
  if (through) {
    second_pass([&](int64_t at, int64_t, int n, Vec) { return get(through + at, n); });
  } else if (activation) {
    second_pass([&](int64_t at, int64_t j, int n, Vec centred) {
      return get(dy + at, n) * Relu::slope(centred * load(a + j) + load(b + j));
    });
  } else {
    second_pass([&](int64_t at, int64_t, int n, Vec) { return get(dy + at, n); });
  }
  return ffi::Error::Success();
}

// The derivative of batch_norm_backward along (ddy, tx), tangents of dy and x, for an activation whose slope is
// piecewise constant and no residual: dy, x, mean, variance, scale, bias, ddy, tx -> tangents of dx, dscale, dbias
ffi::Error batch_norm_backward_tangent(Call call) {
  const int64_t channels = call.last(0);
  const bool masked = call.integer("activation") == 1;
  const Rows rows(channels, call.size(0));
  const int64_t width = rows.width, padded = rows.padded();
  const double images = static_cast<double>(rows.total / channels);
  const float *dy = call.arg(0), *x = call.arg(1), *mean = call.arg(2), *bias = call.arg(5);
  const float *ddy = call.arg(6), *tx = call.arg(7);
  std::vector<double> inverse(channels);
  std::vector<float> gain(channels);
  for (int64_t c = 0; c < channels; ++c) {
    inverse[c] = 1.0 / std::sqrt(call.arg(3)[c] + call.real("eps"));
    gain[c] = static_cast<float>(call.arg(4)[c] * inverse[c]);
  }
  Scratch parameters(8 * padded * sizeof(float));
  float* m = parameters.as<float>();
  float *a = m + padded, *b = a + padded, *coefficients = b + padded;
  rows.repeat(mean, 0.0f, m);
  rows.repeat(gain.data(), 1.0f, a);
  rows.repeat(bias, 0.0f, b);
  // What the activation lets through; u is x - mean.
  const auto slope = [&](Vec u, int64_t j) {
    return masked ? Relu::slope(u * load(a + j) + load(b + j)) : splat(1.0f);
  };

  // Sums a channel of g, g u, g', g' u, x', x' u and g x'.
  constexpr int kSums = 7;
  Scratch sums(rows.tasks * kSums * width * sizeof(double));
  double* partial = sums.as<double>();
  on_threads(call.pool, rows.tasks, [&](int64_t task) {
    double* mine = partial + task * kSums * width;
    std::fill(mine, mine + kSums * width, 0.0);
    Scratch scratch(kSums * padded * sizeof(float));
    float* running = scratch.as<float>();
    for (int64_t start = rows.begin(task); start < rows.end(task); start += kFlush) {
      const int64_t stop = std::min(rows.end(task), start + kFlush);
      std::fill(running, running + kSums * padded, 0.0f);
      for (int64_t j = 0; j < width; j += VL) {
        Vec s[kSums];
        for (int k = 0; k < kSums; ++k) s[k] = Vec{};
        for (int64_t row = start; row < stop; ++row) {
          const int64_t left = rows.width_of(row) - j;
          if (left <= 0) break;
          const int n = static_cast<int>(std::min<int64_t>(VL, left));
          const int64_t at = row * width + j;
          const Vec u = keep(get(x + at, n) - load(m + j), n), pass = slope(u, j);
          const Vec g = get(dy + at, n) * pass, changed = get(ddy + at, n) * pass, t = get(tx + at, n);
          s[0] += g;
          s[1] += g * u;
          s[2] += changed;
          s[3] += changed * u;
          s[4] += t;
          s[5] += t * u;
          s[6] += g * t;
        }
        for (int k = 0; k < kSums; ++k) store(running + k * padded + j, s[k]);
      }
      for (int k = 0; k < kSums; ++k)
        for (int64_t j = 0; j < width; ++j) mine[k * width + j] += running[k * padded + j];
    }
  });
  std::vector<double> total(kSums * channels);
  for (int k = 0; k < kSums; ++k) rows.join(partial + k * width, kSums * width, total.data() + k * channels);

  // With i = 1 / deviation and h = i (x' - mean of x' - i^2 u * mean of x' u), the tangent of i u: the tangent of
  // dx = gain (g - mean of g - i^2 u * mean of g u), as coefficients of g', g, x', u and 1.
  std::vector<float> of(5 * channels);
  for (int64_t c = 0; c < channels; ++c) {
    double at[kSums];
    for (int k = 0; k < kSums; ++k) at[k] = total[k * channels + c] / images;
    const double i = inverse[c], scaled = call.arg(4)[c] * i;
    const double shrink = -i * i * at[5];  // the relative change of i
    const double met = i * (at[6] - at[4] * at[0] - i * i * at[5] * at[1]);  // mean of g h
    const double slant = i * at[1];                                           // mean of g i u
    of[c] = static_cast<float>(scaled);
    of[channels + c] = static_cast<float>(scaled * shrink);
    of[2 * channels + c] = static_cast<float>(-scaled * slant * i);
    of[3 * channels + c] = static_cast<float>(
        scaled * i * (-i * at[3] - shrink * i * at[1] + slant * i * i * at[5] - met));
    of[4 * channels + c] = static_cast<float>(scaled * (-at[2] - shrink * at[0] + slant * i * at[4]));
    call.result(1)[c] = static_cast<float>(images * (i * at[3] + met));
    call.result(2)[c] = static_cast<float>(images * at[2]);
  }
  for (int k = 0; k < 5; ++k) rows.repeat(of.data() + k * channels, 0.0f, coefficients + k * padded);
  float* out = call.result(0);
  on_threads(call.pool, rows.tasks, [&](int64_t task) {
    each_vector(rows, rows.last(task), [&](int64_t at, int64_t j, int n) {
      const Vec u = get(x + at, n) - load(m + j), pass = slope(u, j);
      const float* k = coefficients + j;
      const Vec g = pass * (get(ddy + at, n) * load(k) + get(dy + at, n) * load(k + padded));
      put(out + at, g + get(tx + at, n) * load(k + 2 * padded) + (u * load(k + 3 * padded) + load(k + 4 * padded)), n);
    });
  });
  return ffi::Error::Success();
}

// Running statistics: x, scale, bias, mean, variance [, residual] -> y
ffi::Error batch_norm_inference(Call call) {
  const int64_t channels = call.last(0);
  std::vector<float> gain(channels);
  for (int64_t c = 0; c < channels; ++c)
    gain[c] = static_cast<float>(call.arg(1)[c] / std::sqrt(call.arg(4)[c] + call.real("eps")));
  affine(call, Rows(channels, call.size(0)), call.arg(0), call.arg(3), gain.data(), call.arg(2),
         call.in.size() == 6 ? call.arg(5) : nullptr, call.integer("activation"), call.result(0));
  return ffi::Error::Success();
}

// Arguments that may be absent follow each other in order; `has` has a bit for each.
struct Optional {
  const Call& call;
  int64_t has;
  size_t next;
  const float* arg(int bit) { return has >> bit & 1 ? call.arg(next++) : nullptr; }
  float* result(int bit) { return has >> bit & 1 ? call.result(next++) : nullptr; }
};

// x [, scale] [, shift] [, residual] -> y
ffi::Error scale_shift(Call call) {
  Optional given{call, call.integer("has"), 1};
  const float *scale = given.arg(0), *shift = given.arg(1), *residual = given.arg(2);
  affine(call, Rows(call.last(0), call.size(0)), call.arg(0), nullptr, scale, shift, residual,
         call.integer("activation"), call.result(0));
  return ffi::Error::Success();
}

// dy, x [, scale] [, shift] [, kept] -> [dx] [, dscale] [, dshift] [, dresidual]
ffi::Error scale_shift_backward(Call call) {
  Optional given{call, call.integer("has"), 2}, asked{call, call.integer("asked"), 0};
  const float *scale = given.arg(0), *shift = given.arg(1), *kept = given.arg(2);
  float *dx = asked.result(0), *dscale = asked.result(1), *dshift = asked.result(2), *dresidual = asked.result(3);
  const int64_t channels = call.last(0);
  std::vector<double> s(channels), t(channels);
  affine_backward(call, Rows(channels, call.size(0)), call.arg(0), call.arg(1), nullptr, scale, shift, kept,
                  call.integer("activation"), dscale || dshift ? s.data() : nullptr, t.data(), dx, dresidual);
  for (int64_t c = 0; c < channels; ++c) {
    if (dscale) dscale[c] = static_cast<float>(t[c]);
    if (dshift) dshift[c] = static_cast<float>(s[c]);
  }
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------- normalisation within a pixel

struct Pixels {  // rows of `channels` floats, each handled whole
  int64_t channels, count, per_task, tasks;
  explicit Pixels(const Call& call) : channels(call.last(0)), count(call.size(0) / channels) {
    per_task = std::max<int64_t>(1, kTask / channels);
    tasks = (count + per_task - 1) / per_task;
  }
  int64_t padded() const { return (channels + VL - 1) / VL * VL; }
  int64_t begin(int64_t task) const { return task * per_task; }
  int64_t end(int64_t task) const { return std::min(count, (task + 1) * per_task); }
};

// body(j, n) for each vector of n floats from j.
template <class Body>
inline void vectors(int64_t width, const Body& body) {
  int64_t j = 0;
  for (; j + VL <= width; j += VL) body(j, VL);
  if (j < width) body(j, static_cast<int>(width - j));
}
struct Moments { float mean, inverse; };
inline Moments moments(const float* x, int64_t channels, float eps) {
  Vec total{}, square{};
  vectors(channels, [&](int64_t j, int n) { total += get(x + j, n); });
  const float mean = sum(total) / channels;
  vectors(channels, [&](int64_t j, int n) {
    const Vec v = keep(get(x + j, n) - mean, n);
    square += v * v;
  });
  return {mean, 1.0f / std::sqrt(sum(square) / channels + eps)};
}

// x, scale, bias [, residual] -> y
ffi::Error layer_norm(Call call) {
  const Pixels pixels(call);
  const int64_t channels = pixels.channels;
  const float *x = call.arg(0), *scale = call.arg(1), *bias = call.arg(2);
  const float* residual = call.in.size() == 4 ? call.arg(3) : nullptr;
  float* y = call.result(0);
  const float eps = static_cast<float>(call.real("eps"));
  with_activation(call.integer("activation"), [&](auto act) {
    on_threads(call.pool, pixels.tasks, [&](int64_t task) {
      for (int64_t row = pixels.begin(task); row < pixels.end(task); ++row) {
        const int64_t at = row * channels;
        const Moments m = moments(x + at, channels, eps);
        vectors(channels, [&](int64_t j, int n) {
          Vec z = (get(x + at + j, n) - m.mean) * m.inverse * get(scale + j, n) + get(bias + j, n);
          if (residual) z += get(residual + at + j, n);
          put(y + at + j, act.value(z), n);
        });
      }
    });
  });
  return ffi::Error::Success();
}

// dy, x, scale, bias [, kept] -> dx, dscale, dbias [, dresidual]
ffi::Error layer_norm_backward(Call call) {
  const Pixels pixels(call);
  const int64_t channels = pixels.channels, padded = pixels.padded();
  const float *dy = call.arg(0), *x = call.arg(1), *scale = call.arg(2), *bias = call.arg(3);
  const float* kept = call.in.size() == 5 ? call.arg(4) : nullptr;
  float *dx = call.result(0), *dresidual = call.out.size() == 4 ? call.result(3) : nullptr;
  const float eps = static_cast<float>(call.real("eps"));
  Scratch sums(pixels.tasks * 2 * padded * sizeof(double));
  double* partial = sums.as<double>();
  with_activation(call.integer("activation"), [&](auto act) {
    on_threads(call.pool, pixels.tasks, [&](int64_t task) {
      Scratch scratch(3 * padded * sizeof(float));
      float *gradient = scratch.as<float>(), *dscale = gradient + padded, *dbias = dscale + padded;
      double* mine = partial + task * 2 * padded;
      std::fill(mine, mine + 2 * padded, 0.0);
      for (int64_t start = pixels.begin(task); start < pixels.end(task); start += kFlush) {
        std::fill(dscale, dscale + 2 * padded, 0.0f);
        for (int64_t row = start; row < std::min(pixels.end(task), start + kFlush); ++row) {
          const int64_t at = row * channels;
          const Moments m = moments(x + at, channels, eps);
          Vec total{}, along{};
          vectors(channels, [&](int64_t j, int n) {
            const Vec unit = keep((get(x + at + j, n) - m.mean) * m.inverse, n), s = get(scale + j, n);
            Vec g = get(dy + at + j, n);
            if (kept && act.from_output) {
              g *= act.slope_at(get(kept + at + j, n));
            } else {
              Vec z = unit * s + get(bias + j, n);
              if (kept) z += get(kept + at + j, n);
              g *= act.slope(z);
            }
            if (dresidual) put(dresidual + at + j, g, n);
            store(dbias + j, load(dbias + j) + g);
            store(dscale + j, load(dscale + j) + g * unit);
            g *= s;
            store(gradient + j, g);
            total += g;
            along += g * unit;
          });
          const float mean_g = sum(total) / channels, mean_gx = sum(along) / channels;
          vectors(channels, [&](int64_t j, int n) {
            const Vec unit = (get(x + at + j, n) - m.mean) * m.inverse;
            put(dx + at + j, (load(gradient + j) - mean_g - unit * mean_gx) * m.inverse, n);
          });
        }
        for (int64_t j = 0; j < 2 * padded; ++j) mine[j] += dscale[j];
      }
    });
  });
  for (int64_t c = 0; c < channels; ++c) {
    double s = 0, b = 0;
    for (int64_t task = 0; task < pixels.tasks; ++task) {
      s += partial[task * 2 * padded + c];
      b += partial[task * 2 * padded + padded + c];
    }
    call.result(1)[c] = static_cast<float>(s);
    call.result(2)[c] = static_cast<float>(b);
  }
  return ffi::Error::Success();
}

// v^-beta for v > 0; the square-root forms are many times faster than pow.
template <int Quarters>
inline Vec negative_power(Vec v, float beta) {
  if constexpr (Quarters == 2) return 1.0f / root(v);
  if constexpr (Quarters == 3) {
    const Vec r = root(v);
    return 1.0f / (r * root(r));
  }
  if constexpr (Quarters == 4) return 1.0f / v;
  for (int i = 0; i < VL; ++i) v[i] = std::pow(v[i], -beta);
  return v;
}
template <class Body>
void with_quarters(double beta, Body body) {
  if (beta == 0.5) return body(std::integral_constant<int, 2>{});
  if (beta == 0.75) return body(std::integral_constant<int, 3>{});
  if (beta == 1.0) return body(std::integral_constant<int, 4>{});
  return body(std::integral_constant<int, 0>{});
}

// s = k + alpha * sum of squares over the window of `below` channels before and `above` after; x: [channels].
// `padded` holds the squares with zeros around.
template <class Terms>
inline void window_sums(int64_t channels, int64_t before, int64_t after, float* padded, float* out, const Terms& terms) {
  vectors(channels, [&](int64_t j, int n) { put(padded + before + j, terms(j, n), n); });
  vectors(channels, [&](int64_t j, int) {
    Vec total = load(padded + j);
    for (int64_t i = 1; i <= before + after; ++i) total += load(padded + j + i);
    store(out + j, total);
  });
}

// x -> y = x * s^-beta, or with dy, x -> dx = dy s^-beta - 2 alpha beta x * sum over the windows x is in of
// dy x s^(-beta - 1)
ffi::Error normalise_response(Call call, bool backward) {
  const Pixels pixels(call);
  const int64_t channels = pixels.channels, size = call.integer("size"), below = (size - 1) / 2, above = size / 2;
  const float *dy = call.arg(0), *x = call.arg(backward ? 1 : 0);
  float* out = call.result(0);
  const float alpha = static_cast<float>(call.real("alpha")), k = static_cast<float>(call.real("k"));
  const float beta = static_cast<float>(call.real("beta"));
  with_quarters(call.real("beta"), [&](auto quarters) {
    constexpr int Q = decltype(quarters)::value;
    on_threads(call.pool, pixels.tasks, [&](int64_t task) {
      const int64_t padded = pixels.padded(), room = padded + size + VL;
      Scratch scratch((room + 2 * padded) * sizeof(float));
      float *around = scratch.as<float>(), *sums = around + room, *powers = sums + padded;
      for (int64_t row = pixels.begin(task); row < pixels.end(task); ++row) {
        const int64_t at = row * channels;
        std::fill(around, around + room, 0.0f);
        window_sums(channels, below, above, around, sums, [&](int64_t j, int n) {
          const Vec v = get(x + at + j, n);
          return v * v;
        });
        if (!backward) {
          vectors(channels, [&](int64_t j, int n) {
            put(out + at + j, get(x + at + j, n) * negative_power<Q>(k + alpha * load(sums + j), beta), n);
          });
          continue;
        }
        vectors(channels, [&](int64_t j, int) {
          const Vec s = k + alpha * load(sums + j), power = negative_power<Q>(s, beta);
          store(powers + j, power);
          store(sums + j, power / s);
        });
        std::fill(around, around + room, 0.0f);
        // The windows that reach a channel lie the other way round.
        float* terms = sums;
        vectors(channels, [&](int64_t j, int n) {
          put(around + above + j, get(dy + at + j, n) * get(x + at + j, n) * load(terms + j), n);
        });
        vectors(channels, [&](int64_t j, int n) {
          Vec total = load(around + j);
          for (int64_t i = 1; i < size; ++i) total += load(around + j + i);
          put(out + at + j,
              get(dy + at + j, n) * load(powers + j) - 2.0f * alpha * beta * get(x + at + j, n) * total, n);
        });
      }
    });
  });
  return ffi::Error::Success();
}

ffi::Error response_norm(Call call) { return normalise_response(call, false); }
ffi::Error response_norm_backward(Call call) { return normalise_response(call, true); }

// --------------------------------------------------------------------------- where a network's edges meet

// arrays of one shape -> their sum
ffi::Error total(Call call) {
  const int64_t size = call.size(0), count = call.in.size();
  std::vector<const float*> terms(count);
  for (int64_t i = 0; i < count; ++i) terms[i] = call.arg(i);
  float* out = call.result(0);
  on_threads(call.pool, (size + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t begin = task * kTask;
    vectors(std::min(kTask, size - begin), [&](int64_t j, int n) {
      Vec sum = get(terms[0] + begin + j, n);
      for (int64_t i = 1; i < count; ++i) sum += get(terms[i] + begin + j, n);
      put(out + begin + j, sum, n);
    });
  });
  return ffi::Error::Success();
}

// weights [n], arrays of one shape -> the sum of weights[positions[k]] times the k-th array
ffi::Error weighted_sum(Call call) {
  const int64_t size = call.size(1), count = call.in.size() - 1;
  const auto positions = *call.attributes.get<ffi::Span<const int64_t>>("positions");
  std::vector<const float*> terms(count);
  std::vector<float> weights(count);
  for (int64_t k = 0; k < count; ++k) {
    terms[k] = call.arg(1 + k);
    weights[k] = call.arg(0)[positions[k]];
  }
  float* out = call.result(0);
  on_threads(call.pool, (size + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t begin = task * kTask;
    vectors(std::min(kTask, size - begin), [&](int64_t j, int n) {
      Vec sum{};
      for (int64_t k = 0; k < count; ++k) sum += weights[k] * get(terms[k] + begin + j, n);
      put(out + begin + j, sum, n);
    });
  });
  return ffi::Error::Success();
}

// dy, weights [n], arrays -> d weights [n], and for each array its weight times dy
ffi::Error weighted_sum_backward(Call call) {
  const int64_t size = call.size(0), count = call.in.size() - 2, places = call.size(1);
  const auto positions = *call.attributes.get<ffi::Span<const int64_t>>("positions");
  const float* dy = call.arg(0);
  std::vector<const float*> terms(count);
  std::vector<float*> outs(count);
  std::vector<float> weights(count);
  for (int64_t k = 0; k < count; ++k) {
    terms[k] = call.arg(2 + k);
    outs[k] = call.result(1 + k);
    weights[k] = call.arg(1)[positions[k]];
  }
  const int64_t tasks = (size + kTask - 1) / kTask;
  Scratch scratch(tasks * count * sizeof(double));
  double* partial = scratch.as<double>();
  on_threads(call.pool, tasks, [&](int64_t task) {
    const int64_t begin = task * kTask;
    for (int64_t k = 0; k < count; ++k) {
      double all = 0;
      Vec some{};
      int64_t rows = 0;
      vectors(std::min(kTask, size - begin), [&](int64_t j, int n) {
        const Vec g = get(dy + begin + j, n);
        some += g * get(terms[k] + begin + j, n);
        put(outs[k] + begin + j, weights[k] * g, n);
        if (++rows == kFlush) {
          all += sum(some);
          some = Vec{};
          rows = 0;
        }
      });
      partial[task * count + k] = all + sum(some);
    }
  });
  std::vector<double> totals(places, 0.0);
  for (int64_t k = 0; k < count; ++k)
    for (int64_t task = 0; task < tasks; ++task) totals[positions[k]] += partial[task * count + k];
  for (int64_t i = 0; i < places; ++i) call.result(0)[i] = static_cast<float>(totals[i]);
  return ffi::Error::Success();
}

// The arguments of a mixture: weights [n], `count` arrays of one shape, then a mean and a variance [C] for each of
// them that `normed` marks. A weight is that at the array's position, times 1 / deviation.
struct Mixture {
  int64_t count, channels;
  std::vector<const float*> terms;
  std::vector<float> weights;            // of each array
  std::vector<const float*> means;       // null where it is not normalised
  std::vector<std::vector<double>> inverse;  // 1 / deviation a channel

  Mixture(const Call& call, size_t first) {  // the argument that holds the weights
    const auto positions = *call.attributes.get<ffi::Span<const int64_t>>("positions");
    const auto normed = *call.attributes.get<ffi::Span<const int64_t>>("normed");
    count = positions.size();
    channels = call.last(first + 1);
    size_t next = first + 1 + count;
    for (int64_t k = 0; k < count; ++k) {
      terms.push_back(call.arg(first + 1 + k));
      weights.push_back(call.arg(first)[positions[k]]);
      means.push_back(normed[k] ? call.arg(next) : nullptr);
      inverse.emplace_back(channels, 1.0);
      if (!normed[k]) continue;
      for (int64_t c = 0; c < channels; ++c)
        inverse[k][c] = 1.0 / std::sqrt(call.arg(next + 1)[c] + call.real("eps"));
      next += 2;
    }
  }
};

// weights, arrays, statistics -> the sum of weights[positions[k]] times the k-th array, normalised where marked
ffi::Error mixture(Call call) {
  const Mixture of(call, 0);
  const Rows rows(of.channels, call.size(1));
  const int64_t count = of.count, padded = rows.padded();
  Scratch scratch((count + 1) * padded * sizeof(float));
  float *factors = scratch.as<float>(), *constant = factors + count * padded;
  std::vector<double> shift(of.channels);
  std::vector<float> values(of.channels);
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t c = 0; c < of.channels; ++c) {
      const double factor = of.weights[k] * of.inverse[k][c];
      values[c] = static_cast<float>(factor);
      if (of.means[k]) shift[c] -= factor * of.means[k][c];
    }
    rows.repeat(values.data(), 0.0f, factors + k * padded);
  }
  for (int64_t c = 0; c < of.channels; ++c) values[c] = static_cast<float>(shift[c]);
  rows.repeat(values.data(), 0.0f, constant);
  float* out = call.result(0);
  constexpr int64_t kTogether = 6;  // arrays read side by side; the sum so far stays in the cache
  on_threads(call.pool, rows.tasks, [&](int64_t task) {
    for (int64_t first = 0; first < count; first += kTogether) {
      const int64_t last = std::min(count, first + kTogether);
      each_vector(rows, task, [&](int64_t at, int64_t j, int n) {
        Vec sum = first ? get(out + at, n) : load(constant + j);
        for (int64_t k = first; k < last; ++k) sum += load(factors + k * padded + j) * get(of.terms[k] + at, n);
        put(out + at, sum, n);
      });
    }
  });
  return ffi::Error::Success();
}

// dy, weights, arrays, statistics -> d weights, and the gradients of the arrays, which the statistics are of
ffi::Error mixture_backward(Call call) {
  const Mixture of(call, 1);
  const Rows rows(of.channels, call.size(0));
  const int64_t count = of.count, channels = of.channels, padded = rows.padded(), width = rows.width;
  const int64_t images = rows.total / channels;
  const float* dy = call.arg(0);
  Scratch scratch(4 * count * padded * sizeof(float));
  float* parameters = scratch.as<float>();  // of each array: mean, and the factors of dy, of x - mean and of 1
  for (int64_t k = 0; k < count; ++k) rows.repeat(of.means[k], 0.0f, parameters + 4 * k * padded);

  // Sums a channel of dy, and of dy times each array about its mean; two at a time.
  const int64_t sums = (count + 2) / 2 * 2;
  Scratch partials(rows.tasks * sums * width * sizeof(double));
  double* partial = partials.as<double>();
  on_threads(call.pool, rows.tasks, [&](int64_t task) {
    double* mine = partial + task * sums * width;
    const auto product = [&](int64_t k, Vec g, int64_t at, int64_t j, int n) {
      return g * (get(of.terms[k] + at, n) - load(parameters + 4 * k * padded + j));
    };
    sum_columns(rows, task, mine, mine + width, [&](int64_t at, int64_t j, int n, Vec& a, Vec& b) {
      const Vec g = get(dy + at, n);
      a += g;
      b += product(0, g, at, j, n);
    });
    for (int64_t k = 1; k < count; k += 2) {
      double* these = mine + (k + 1) * width;
      const bool pair = k + 1 < count;
      sum_columns(rows, task, these, these + width, [&](int64_t at, int64_t j, int n, Vec& a, Vec& b) {
        const Vec g = get(dy + at, n);
        a += product(k, g, at, j, n);
        if (pair) b += product(k + 1, g, at, j, n);
      });
    }
  });

  std::vector<double> whole(channels), along(channels), weights(call.size(1));
  const auto positions = *call.attributes.get<ffi::Span<const int64_t>>("positions");
  std::vector<float> values(3 * channels);
  rows.join(partial, sums * width, whole.data());
  for (int64_t k = 0; k < count; ++k) {
    rows.join(partial + (k + 1) * width, sums * width, along.data());
    for (int64_t c = 0; c < channels; ++c) {
      const double inverse = of.inverse[k][c], factor = of.weights[k] * inverse;
      weights[positions[k]] += inverse * along[c];
      values[c] = static_cast<float>(factor);
      values[channels + c] = of.means[k] ? static_cast<float>(-factor * inverse * inverse * along[c] / images) : 0.0f;
      values[2 * channels + c] = of.means[k] ? static_cast<float>(-factor * whole[c] / images) : 0.0f;
    }
    for (int i = 0; i < 3; ++i)
      rows.repeat(values.data() + i * channels, 0.0f, parameters + (4 * k + 1 + i) * padded);
  }
  for (int64_t i = 0; i < call.size(1); ++i) call.result(0)[i] = static_cast<float>(weights[i]);
  on_threads(call.pool, rows.tasks, [&](int64_t task) {
    for (int64_t k = 0; k < count; ++k) {
      const float *x = of.terms[k], *m = parameters + 4 * k * padded, *a = m + padded, *b = a + padded, *c = b + padded;
      float* dx = call.result(1 + k);
      if (of.means[k]) {
        each_vector(rows, rows.last(task), [&](int64_t at, int64_t j, int n) {
          const Vec centred = get(x + at, n) - load(m + j);
          put(dx + at, get(dy + at, n) * load(a + j) + (centred * load(b + j) + load(c + j)), n);
        });
      } else {
        each_vector(rows, rows.last(task), [&](int64_t at, int64_t j, int n) {
          put(dx + at, get(dy + at, n) * load(a + j), n);
        });
      }
    }
  });
  return ffi::Error::Success();
}

// Between arrays [..., C_i] and one array [..., sum of C_i]. `body(i, part, whole, C_i)` copies a row.
template <class Body>
void parts(Call& call, int64_t pixels, const std::vector<int64_t>& channels, const Body& body) {
  const int64_t width = std::accumulate(channels.begin(), channels.end(), int64_t{0});
  const int64_t per_task = std::max<int64_t>(1, kTask / width), tasks = (pixels + per_task - 1) / per_task;
  on_threads(call.pool, tasks, [&](int64_t task) {
    for (int64_t row = task * per_task; row < std::min(pixels, (task + 1) * per_task); ++row) {
      int64_t at = row * width;
      for (size_t i = 0; i < channels.size(); at += channels[i++]) body(i, row * channels[i], at, channels[i]);
    }
  });
}
inline void copy(const float* from, float* to, int64_t count) {
  vectors(count, [&](int64_t j, int n) { put(to + j, get(from + j, n), n); });
}

ffi::Error concatenate(Call call) {
  std::vector<int64_t> channels(call.in.size());
  std::vector<const float*> from(channels.size());
  for (size_t i = 0; i < channels.size(); ++i) {
    channels[i] = call.last(i);
    from[i] = call.arg(i);
  }
  float* out = call.result(0);
  parts(call, call.size(0) / channels[0], channels, [&](size_t i, int64_t part, int64_t whole, int64_t count) {
    copy(from[i] + part, out + whole, count);
  });
  return ffi::Error::Success();
}

ffi::Error split(Call call) {
  const auto sizes = *call.attributes.get<ffi::Span<const int64_t>>("channels");
  const std::vector<int64_t> channels(sizes.begin(), sizes.end());
  std::vector<float*> to(channels.size());
  for (size_t i = 0; i < channels.size(); ++i) to[i] = call.result(i);
  const float* from = call.arg(0);
  parts(call, call.size(0) / call.last(0), channels, [&](size_t i, int64_t part, int64_t whole, int64_t count) {
    copy(from + whole, to[i] + part, count);
  });
  return ffi::Error::Success();
}

// x, rate [], seed [] u32 -> x / (1 - rate), or 0 where the hash of its position and seed (noise.py) says so
ffi::Error dropout(Call call) {
  typedef uint32_t Bits __attribute__((vector_size(4 * VL)));
  const int64_t size = call.size(0);
  const float *x = call.arg(0), rate = *call.arg(1), rest = 1.0f - rate;
  const uint32_t seed = *call.arg<uint32_t>(2), threshold = static_cast<uint32_t>(rate * 4294967296.0f);
  float* y = call.result(0);
  on_threads(call.pool, (size + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t begin = task * kTask;
    Bits lanes;
    for (int i = 0; i < VL; ++i) lanes[i] = i;
    vectors(std::min(kTask, size - begin), [&](int64_t j, int n) {
      Bits bits = (lanes + static_cast<uint32_t>(begin + j)) * 0x9E3779B9u ^ seed;
      for (int round = 0; round < 2; ++round) {
        bits = (bits ^ (bits >> 16)) * 0x85EBCA6Bu;
        bits = (bits ^ (bits >> 13)) * 0xC2B2AE35u;
        bits = (bits ^ (bits >> 16)) + seed;
      }
      const Vec scaled = get(x + begin + j, n) / rest;
      put(y + begin + j, bits >= threshold ? scaled : Vec{}, n);
    });
  });
  return ffi::Error::Success();
}

// ------------------------------------------------------------------------------------------ dense layers

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MR = 12;  // rows and columns of a tile: its sums fill the registers
#else
constexpr int MR = 6;
#endif
constexpr int NR = 2 * VL;

struct Matrix {  // element (i, j) at data[i * rows + j * columns]
  const float* data;
  int64_t rows, columns;
};

// Panels of `step` lines of a matrix, zero beyond its end: out[p][k][i] = line p * step + i, position k.
template <int step>
void pack(const Matrix& a, int64_t panel, int64_t lines, int64_t depth, float* out) {
  const int64_t first = panel * step, n = std::min<int64_t>(step, lines - first);
  if (n < step) std::fill(out, out + depth * step, 0.0f);
  const float* from = a.data + first * a.rows;
  if (a.rows == 1 && n == step) {
    for (int64_t k = 0; k < depth; ++k) std::memcpy(out + k * step, from + k * a.columns, step * sizeof(float));
    return;
  }
  for (int64_t start = 0; start < depth; start += 16) {  // a few cache lines of the output at a time
    const int64_t stop = std::min<int64_t>(depth, start + 16);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = start; k < stop; ++k) out[k * step + i] = from[i * a.rows + k * a.columns];
  }
}

inline void tile(const float* a, const float* b, int64_t depth, Vec (&sums)[MR][2]) {
  Vec local[MR][2] = {};
  for (int64_t k = 0; k < depth; ++k, a += MR, b += NR) {
    const Vec left = load(b), right = load(b + VL);
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) {
      local[i][0] += a[i] * left;
      local[i][1] += a[i] * right;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
    sums[i][0] = local[i][0];
    sums[i][1] = local[i][1];
  }
}

// c [m, n] = a [m, depth] b [depth, n] (+ bias [n]), for matrices that fit the cache
void multiply(const nas::Pool& pool, int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, const float* bias,
              float* c) {
  const int64_t down = (m + MR - 1) / MR, across = (n + NR - 1) / NR;
  Scratch scratch((down * MR + across * NR) * depth * sizeof(float));
  float *left = scratch.as<float>(), *right = left + down * MR * depth;
  const Matrix turned{b.data, b.columns, b.rows};
  const bool heavy = m * n * depth > (1 << 19);
  const int64_t packs = heavy ? std::min<int64_t>(16, down + across) : 1;
  on_threads(pool, packs, [&](int64_t task) {
    for (int64_t p = task * (down + across) / packs; p < (task + 1) * (down + across) / packs; ++p) {
      if (p < down) pack<MR>(a, p, m, depth, left + p * MR * depth);
      else pack<NR>(turned, p - down, n, depth, right + (p - down) * NR * depth);
    }
  });
  const int64_t tiles = down * across, tasks = heavy ? std::min<int64_t>(64, tiles) : 1;
  on_threads(pool, tasks, [&](int64_t task) {
    Vec sums[MR][2];
    for (int64_t t = task * tiles / tasks; t < (task + 1) * tiles / tasks; ++t) {
      const int64_t p = t % down, q = t / down;
      tile(left + p * MR * depth, right + q * NR * depth, depth, sums);
      const int width = static_cast<int>(std::min<int64_t>(NR, n - q * NR));
      const int64_t height = std::min<int64_t>(MR, m - p * MR);
      for (int half = 0; half < 2 && half * VL < width; ++half) {
        const int lanes = std::min(VL, width - half * VL);
        const int64_t column = q * NR + half * VL;
        const Vec add = bias ? get(bias + column, lanes) : Vec{};
        for (int64_t i = 0; i < height; ++i) put(c + (p * MR + i) * n + column, sums[i][half] + add, lanes);
      }
    }
  });
}

// x [B, I], w [I, O] [, bias] -> y
ffi::Error dense(Call call) {
  const int64_t batch = call.shape(0)[0], inputs = call.last(0), outputs = call.last(1);
  float* y = call.result(0);
  multiply(call.pool, batch, outputs, inputs, {call.arg(0), inputs, 1}, {call.arg(1), outputs, 1},
           call.in.size() == 3 ? call.arg(2) : nullptr, y);
  if (call.integer("activation"))
    with_activation(call.integer("activation"), [&](auto act) {
        vectors(batch * outputs, [&](int64_t j, int n) { put(y + j, act.value(get(y + j, n)), n); });
    });
  return ffi::Error::Success();
}

// dy [B, O], x [B, I], w [I, O] [, y [B, O]] -> dx, dw [, dbias], for activations whose slope follows from y
ffi::Error dense_backward(Call call) {
  const int64_t batch = call.shape(1)[0], inputs = call.last(1), outputs = call.last(0);
  const float *g = call.arg(0), *x = call.arg(1), *w = call.arg(2);
  Scratch scratch((batch * outputs + VL) * sizeof(float));
  if (call.in.size() == 4) {
    const float *dy = g, *y = call.arg(3);
    float* out = scratch.as<float>();
    with_activation(call.integer("activation"), [&](auto act) {
        vectors(batch * outputs, [&](int64_t j, int n) {
        put(out + j, get(dy + j, n) * act.slope_at(get(y + j, n)), n);
      });
    });
    g = out;
  }
  multiply(call.pool, batch, inputs, outputs, {g, outputs, 1}, {w, 1, outputs}, nullptr, call.result(0));
  multiply(call.pool, inputs, outputs, batch, {x, 1, inputs}, {g, outputs, 1}, nullptr, call.result(1));
  if (call.out.size() == 3)
    vectors(outputs, [&](int64_t j, int n) {
      Vec total{};
      for (int64_t i = 0; i < batch; ++i) total += get(g + i * outputs + j, n);
      put(call.result(2) + j, total, n);
    });
  return ffi::Error::Success();
}

// --------------------------------------------------------------------------------------------- the loss

inline float log_sum_exp(const float* row, int64_t classes) {
  Vec top = splat(row[0]);
  vectors(classes, [&](int64_t j, int n) {
    const Vec v = get(row + j, n);
    if (n == VL) top = v > top ? v : top;
    else for (int i = 0; i < n; ++i) top[i] = v[i] > top[i] ? v[i] : top[i];
  });
  const float most = largest(top);
  Vec total{};
  vectors(classes, [&](int64_t j, int n) { total += keep(exp(get(row + j, n) - most), n); });
  return most + std::log(sum(total));
}

// logits [B, K], targets [B, K] -> loss [B], or its mean
ffi::Error cross_entropy(Call call) {
  const int64_t classes = call.last(0), batch = call.size(0) / classes;
  const float *logits = call.arg(0), *targets = call.arg(1);
  float* loss = call.result(0);
  const bool mean = call.integer("mean");
  double all = 0;
  for (int64_t i = 0; i < batch; ++i) {
    const float *row = logits + i * classes, *target = targets + i * classes;
    const float most = log_sum_exp(row, classes);
    Vec total{};
    vectors(classes, [&](int64_t j, int n) { total += get(target + j, n) * (most - get(row + j, n)); });
    if (mean) all += sum(total);
    else loss[i] = sum(total);
  }
  if (mean) loss[0] = static_cast<float>(all / batch);
  return ffi::Error::Success();
}

// dloss [B] or [], logits, targets -> dlogits, dtargets
ffi::Error cross_entropy_backward(Call call) {
  const int64_t classes = call.last(1), batch = call.size(1) / classes;
  const float *dloss = call.arg(0), *logits = call.arg(1), *targets = call.arg(2);
  float *dlogits = call.result(0), *dtargets = call.result(1);
  const bool mean = call.integer("mean");
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t at = i * classes;
    const float most = log_sum_exp(logits + at, classes), scale = mean ? dloss[0] / batch : dloss[i];
    Vec mass{};
    vectors(classes, [&](int64_t j, int n) { mass += get(targets + at + j, n); });
    const float total = sum(mass);
    vectors(classes, [&](int64_t j, int n) {
      const Vec below = get(logits + at + j, n) - most;
      put(dlogits + at + j, scale * (exp(below) * total - get(targets + at + j, n)), n);
      put(dtargets + at + j, -scale * below, n);
    });
  }
  return ffi::Error::Success();
}

// logits [B, K], labels [B] -> how many rows have their largest logit at the label, as float
ffi::Error count_correct(Call call) {
  const int64_t batch = call.shape(0)[0], classes = call.last(0);
  const int32_t* labels = call.arg<int32_t>(1);
  int64_t correct = 0;
  for (int64_t i = 0; i < batch; ++i) {
    const float* row = call.arg(0) + i * classes;
    int64_t best = 0;
    for (int64_t j = 1; j < classes; ++j)
      if (row[j] > row[best] || (std::isnan(row[j]) && !std::isnan(row[best]))) best = j;
    correct += best == labels[i];
  }
  call.result(0)[0] = static_cast<float>(correct);
  return ffi::Error::Success();
}

// ----------------------------------------------------------------------------- optimisers, on many leaves

struct Piece { int64_t leaf, begin, end; };

std::vector<Piece> pieces(const Call& call, int64_t first, int64_t leaves) {
  std::vector<Piece> found;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    const int64_t size = call.size(first + leaf);
    for (int64_t begin = 0; begin < size; begin += kTask)
      found.push_back({leaf, begin, std::min(size, begin + kTask)});
  }
  return found;
}

// body(piece index) for all, neighbours together so that small leaves cost no more than large ones.
template <class Body>
void over_pieces(Call& call, const std::vector<Piece>& all, const Body& body) {
  std::vector<int64_t> starts{0};
  int64_t gathered = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    gathered += all[i].end - all[i].begin + 256;
    if (gathered >= kTask || i + 1 == all.size()) {
      starts.push_back(i + 1);
      gathered = 0;
    }
  }
  on_threads(call.pool, starts.size() - 1, [&](int64_t task) {
    for (int64_t i = starts[task]; i < starts[task + 1]; ++i) body(i);
  });
}

constexpr int64_t kScalars = 9;  // the order of SCALARS in fused.py

// scalars..., params..., grads..., slots... -> params..., slots...
ffi::Error optimiser(Call call) {
  enum Kind { kSgd, kMomentum, kNesterov, kRmsprop, kAdam, kAdamw };
  const int64_t kind = call.integer("kind"), leaves = call.integer("leaves");
  const auto decayed = *call.attributes.get<ffi::Span<const int64_t>>("decayed");
  const float rate = *call.arg(0), decay = *call.arg(1), grad_scale = *call.arg(2), momentum = *call.arg(3);
  const float b1 = *call.arg(4), b2 = *call.arg(5), rms = *call.arg(6), eps = *call.arg(7);
  const double steps = *call.arg<int32_t>(8) + 1.0;
  const float new1 = static_cast<float>(1.0 - b1), new2 = static_cast<float>(1.0 - b2);
  const float correct1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(b1), steps)));
  const float correct2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(b2), steps)));
  const float rms_new = static_cast<float>(1.0 - rms);
  const std::vector<Piece> all = pieces(call, kScalars, leaves);
  over_pieces(call, all, [&](int64_t piece) {
    const auto [leaf, begin, end] = all[piece];
    const float *p = call.arg(kScalars + leaf) + begin, *g = call.arg(kScalars + leaves + leaf) + begin;
    float* out = call.result(leaf) + begin;
    const auto slot = [&](int i) { return call.arg(kScalars + (2 + i) * leaves + leaf) + begin; };
    const auto new_slot = [&](int i) { return call.result((1 + i) * leaves + leaf) + begin; };
    const float l2 = decayed[leaf] && kind != kAdamw ? decay : 0.0f;
    const float decoupled = decayed[leaf] && kind == kAdamw ? decay : 0.0f;
    const auto each = [&](const auto& update) {  // update(j, n, p, g) is what the rate multiplies
      vectors(end - begin, [&](int64_t j, int n) {
        const Vec value = get(p + j, n);
        Vec gradient = get(g + j, n) * grad_scale;
        if (l2 != 0.0f) gradient += l2 * value;
        put(out + j, value - rate * update(j, n, value, gradient), n);
      });
    };
    if (kind == kSgd) {
      each([&](int64_t, int, Vec, Vec gradient) { return gradient; });
    } else if (kind == kMomentum || kind == kNesterov) {
      const float* trace = slot(0);
      float* traced = new_slot(0);
      each([&](int64_t j, int n, Vec, Vec gradient) {
        const Vec t = gradient + momentum * get(trace + j, n);
        put(traced + j, t, n);
        return kind == kNesterov ? gradient + momentum * t : t;
      });
    } else if (kind == kRmsprop) {
      const float* square = slot(0);
      float* squared = new_slot(0);
      each([&](int64_t j, int n, Vec, Vec gradient) {
        const Vec v = rms_new * (gradient * gradient) + rms * get(square + j, n);
        put(squared + j, v, n);
        return gradient / root(v + eps);
      });
    } else {
      const float *first = slot(0), *second = slot(1);
      float *m_out = new_slot(0), *v_out = new_slot(1);
      each([&](int64_t j, int n, Vec value, Vec gradient) {
        const Vec m = new1 * gradient + b1 * get(first + j, n);
        const Vec v = new2 * (gradient * gradient) + b2 * get(second + j, n);
        put(m_out + j, m, n);
        put(v_out + j, v, n);
        Vec update = m * correct1 / (root(v * correct2) + eps);
        if (decoupled != 0.0f) update += decoupled * value;
        return update;
      });
    }
  });
  return ffi::Error::Success();
}

// largest norm [], leaves... -> norm of all leaves together, and the factor that brings it down to the largest
ffi::Error global_norm(Call call) {
  const std::vector<Piece> all = pieces(call, 1, call.in.size() - 1);
  std::vector<double> partial(all.size());
  over_pieces(call, all, [&](int64_t piece) {
    const auto [leaf, begin, end] = all[piece];
    const float* p = call.arg(1 + leaf);
    double total = 0;
    for (int64_t start = begin; start < end; start += 2048) {
      Vec square{};
      vectors(std::min<int64_t>(2048, end - start), [&](int64_t j, int n) {
        const Vec v = get(p + start + j, n);
        square += v * v;
      });
      total += sum(square);
    }
    partial[piece] = total;
  });
  double total = 0;
  for (double part : partial) total += part;
  const float norm = static_cast<float>(std::sqrt(total)), most = *call.arg(0);
  call.result(0)[0] = norm;
  call.result(1)[0] = norm < most ? 1.0f : most / norm;
  return ffi::Error::Success();
}

// weight [], old..., new... -> old + weight (new - old); with `keeps`, weight is the old one's share
ffi::Error lerp(Call call) {
  const int64_t leaves = (call.in.size() - 1) / 2;
  const float weight = *call.arg(0);
  const float rest = static_cast<float>(1.0 - weight);
  const float from_old = call.integer("keeps") ? weight : rest, from_new = call.integer("keeps") ? rest : weight;
  const std::vector<Piece> all = pieces(call, 1, leaves);
  over_pieces(call, all, [&](int64_t piece) {
    const auto [leaf, begin, end] = all[piece];
    const float *a = call.arg(1 + leaf) + begin, *b = call.arg(1 + leaves + leaf) + begin;
    float* out = call.result(leaf) + begin;
    vectors(end - begin, [&](int64_t j, int n) { put(out + j, from_old * get(a + j, n) + from_new * get(b + j, n), n); });
  });
  return ffi::Error::Success();
}

// ------------------------------------------------------------------------------------------ recomputation

// leaves, and an array they wait for -> the leaves
ffi::Error after(Call call) {
  const int64_t leaves = call.in.size() - 1;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    if (call.result(leaf) != call.arg(leaf)) {
      std::memcpy(call.result(leaf), call.arg(leaf), call.size(leaf) * sizeof(float));
    }
  }
  return ffi::Error::Success();
}

// ------------------------------------------------------------------------------------------ input pipeline

// images u8 [N, H, W, C], index [B], mean [C], inverse deviation [C] [, shift [B, 2], flip [B], cutout [B, 3]]
// -> (pixel / 255 - mean) * inverse [B, H, W, C]; fused.py says what shift, flip and cutout do
ffi::Error gather_images(Call call) {
  const auto shape = call.shape(0);
  const int64_t count = shape[0], height = shape[1], width = shape[2], channels = shape[3], batch = call.size(1);
  const uint8_t* images = call.arg<uint8_t>(0);
  const int32_t* index = call.arg<int32_t>(1);
  const float *mean = call.arg(2), *inverse = call.arg(3);
  const bool augmented = call.in.size() > 4;
  const int32_t *shift = augmented ? call.arg<int32_t>(4) : nullptr, *cutout = augmented ? call.arg<int32_t>(6) : nullptr;
  const uint8_t* flip = augmented ? call.arg<uint8_t>(5) : nullptr;
  const int64_t line = width * channels;
  Scratch scratch(2 * line * sizeof(float));
  float *means = scratch.as<float>(), *inverses = means + line;
  for (int64_t i = 0; i < line; ++i) {
    means[i] = mean[i % channels];
    inverses[i] = inverse[i % channels];
  }
  const int64_t per_task = std::max<int64_t>(1, kTask / (height * line)), tasks = (batch + per_task - 1) / per_task;
  on_threads(call.pool, tasks, [&](int64_t task) {
    std::vector<uint8_t> moved(line);
    for (int64_t i = task * per_task; i < std::min(batch, (task + 1) * per_task); ++i) {
      int64_t chosen = index[i];
      if (chosen < 0) chosen += count;
      chosen = std::clamp<int64_t>(chosen, 0, count - 1);
      const uint8_t* image = images + chosen * height * line;
      const int64_t dy = augmented ? shift[2 * i] : 0, dx = augmented ? shift[2 * i + 1] : 0;
      const bool flipped = augmented && flip[i];
      for (int64_t row = 0; row < height; ++row) {
        float* out = call.result(0) + (i * height + row) * line;
        const uint8_t* from = image + row * line;
        if (dy || dx || flipped) {
          std::fill(moved.begin(), moved.end(), uint8_t{0});
          const int64_t begin = std::clamp<int64_t>(-dx, 0, width), end = std::clamp<int64_t>(width - dx, 0, width);
          if (row + dy >= 0 && row + dy < height && begin < end) {
            from = image + (row + dy) * line;
            if (!flipped)
              std::memcpy(moved.data() + begin * channels, from + (begin + dx) * channels, (end - begin) * channels);
            else
              for (int64_t column = begin; column < end; ++column)
                for (int64_t c = 0; c < channels; ++c)
                  moved[(width - 1 - column) * channels + c] = from[(column + dx) * channels + c];
          }
          from = moved.data();
        }
        for (int64_t j = 0; j < line; ++j) out[j] = (from[j] * (1.0f / 255.0f) - means[j]) * inverses[j];
        if (augmented && row >= cutout[3 * i] && row < int64_t{cutout[3 * i]} + cutout[3 * i + 2]) {
          const int64_t begin = std::clamp<int64_t>(cutout[3 * i + 1], 0, width);
          const int64_t end = std::clamp<int64_t>(int64_t{cutout[3 * i + 1]} + cutout[3 * i + 2], 0, width);
          if (begin < end) std::fill(out + begin * channels, out + end * channels, 0.0f);
        }
      }
    }
  });
  return ffi::Error::Success();
}

// labels [N], index [B], smoothing [] -> labels [B], targets [B, K]
ffi::Error gather_targets(Call call) {
  const int64_t count = call.size(0), batch = call.size(1), classes = call.integer("classes");
  const float smoothing = *call.arg(2), low = smoothing / classes, high = 1.0f - smoothing + low;
  for (int64_t i = 0; i < batch; ++i) {
    int64_t chosen = call.arg<int32_t>(1)[i];
    if (chosen < 0) chosen += count;
    const int32_t label = call.arg<int32_t>(0)[std::clamp<int64_t>(chosen, 0, count - 1)];
    call.result<int32_t>(0)[i] = label;
    float* row = call.result(1) + i * classes;
    for (int64_t j = 0; j < classes; ++j) row[j] = j == label ? high : low;
  }
  return ffi::Error::Success();
}

template <ffi::Error (*kernel)(Call)>
ffi::Error enter(ffi::ThreadPool pool, ffi::RemainingArgs in, ffi::RemainingRets out, ffi::Dictionary attributes) {
  return kernel(Call{{&pool}, in, out, attributes});
}

}  // namespace

#define HANDLER(kernel)                                                                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                                          \
      nas_##kernel, enter<kernel>,                                                                        \
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs())

HANDLER(moments);
HANDLER(batch_norm);
HANDLER(batch_norm_backward);
HANDLER(batch_norm_backward_tangent);
HANDLER(batch_norm_inference);
HANDLER(scale_shift);
HANDLER(scale_shift_backward);
HANDLER(layer_norm);
HANDLER(layer_norm_backward);
HANDLER(response_norm);
HANDLER(response_norm_backward);
HANDLER(total);
HANDLER(weighted_sum);
HANDLER(weighted_sum_backward);
HANDLER(mixture);
HANDLER(mixture_backward);
HANDLER(concatenate);
HANDLER(split);
HANDLER(dropout);
HANDLER(dense);
HANDLER(dense_backward);
HANDLER(cross_entropy);
HANDLER(cross_entropy_backward);
HANDLER(count_correct);
HANDLER(optimiser);
HANDLER(global_norm);
HANDLER(lerp);
HANDLER(after);
HANDLER(gather_images);
HANDLER(gather_targets);
