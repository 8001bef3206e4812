// What stands on a network's edges and where they meet: rectifiers, sums, and a supernet's mixtures.

#include "rows.h"

namespace nas {
namespace {

// x -> y
void relu(const Call& call) {
  const float* x = call.arg(0);
  float* y = call.result(0);
  each_vector(call.pool, call.size(0), [=](Index at, int n) {
    const Vec z = load(x + at, n);
    store(y + at, z < 0.0f ? Vec{} : z, n);  // NaN passes
  });
}

// dy, x -> dx
void relu_backward(const Call& call) {
  const float *dy = call.arg(0), *x = call.arg(1);
  float* dx = call.result(0);
  each_vector(call.pool, call.size(0), [=](Index at, int n) {
    store(dx + at, load(x + at, n) > 0.0f ? load(dy + at, n) : Vec{}, n);
  });
}

// arrays of one shape -> their sum
void add(const Call& call) {
  std::vector<const float*> terms;
  for (std::size_t i = 0; i < call.in.size(); ++i) terms.push_back(call.arg(i));
  float* out = call.result(0);
  each_vector(call.pool, call.size(0), [&](Index at, int n) {
    Vec sum = load(terms[0] + at, n);
    for (std::size_t i = 1; i < terms.size(); ++i) sum += load(terms[i] + at, n);
    store(out + at, sum, n);
  });
}

// weights [n], arrays of one shape -> the sum of weights[positions[k]] times the k-th array
void weighted_sum(const Call& call) {
  const auto positions = call.integers("positions");
  std::vector<const float*> arrays;
  std::vector<float> weights;
  for (std::size_t k = 0; k < positions.size(); ++k) {
    arrays.push_back(call.arg(1 + k));
    weights.push_back(call.arg(0)[positions[k]]);
  }
  float* out = call.result(0);
  each_vector(call.pool, call.size(1), [&](Index at, int n) {
    Vec sum{};
    for (std::size_t k = 0; k < arrays.size(); ++k) sum += weights[k] * load(arrays[k] + at, n);
    store(out + at, sum, n);
  });
}

// dy, weights [n], arrays -> d weights [n], and for each array its weight times dy
void weighted_sum_backward(const Call& call) {
  const auto positions = call.integers("positions");
  const Index size = call.size(0), count = positions.size(), tasks = ceil_div(size, kTask);
  const Scratch<double> products(count * tasks);
  std::vector<double> totals(call.size(1));
  parallel(call.pool, count * tasks, [&](Index unit) {
    const Index k = unit % count, begin = unit / count * kTask;
    const float *dy = call.arg(0) + begin, *x = call.arg(2 + k) + begin, weight = call.arg(1)[positions[k]];
    float* dx = call.result(1 + k) + begin;
    double all = 0;
    for (Index start = 0, end = std::min(kTask, size - begin); start < end; start += kFlush * kWidth) {
      Vec some{};
      for_vectors(std::min(kFlush * kWidth, end - start), [&](Index j, int n) {
        const Vec g = load(dy + start + j, n);
        some += g * load(x + start + j, n);
        store(dx + start + j, weight * g, n);
      });
      all += sum(some);
    }
    products[unit] = all;
  });
  for (Index unit = 0; unit < count * tasks; ++unit) totals[positions[unit % count]] += products[unit];
  std::copy(totals.begin(), totals.end(), call.result(0));
}

// The arguments of a mixture: weights [n], an array of one shape for each of `positions` in them, then a mean and a
// variance [C] for each array that is `normed`. An array's weight is that at its position, times 1 / deviation.
struct Mixture {
  Call::Numbers positions;
  Index count, channels;
  std::vector<const float*> arrays, means;   // means: null where an array is not normalised
  std::vector<float> weights;                // of each array
  std::vector<std::vector<double>> inverse;  // 1 / deviation a channel

  Mixture(const Call& call, std::size_t first)  // the argument that is the weights
      : positions(call.integers("positions")), count(positions.size()), channels(call.last(first + 1)) {
    std::size_t next = first + 1 + count;
    for (Index k = 0; k < count; ++k) {
      const bool normed = call.integers("normed")[k];
      arrays.push_back(call.arg(first + 1 + k));
      weights.push_back(call.arg(first)[positions[k]]);
      means.push_back(normed ? call.arg(next) : nullptr);
      inverse.push_back(normed ? inverse_deviations(call.arg(next + 1), channels, call.real("eps"))
                               : std::vector<double>(channels, 1.0));
      next += normed ? 2 : 0;
    }
  }
};

// Pointers to `count` parts of `values`.
std::vector<const float*> parts(const std::vector<float>& values, Index count) {
  std::vector<const float*> pointers;
  for (Index k = 0; k < count; ++k) pointers.push_back(values.data() + k * (values.size() / count));
  return pointers;
}

// weights, arrays, statistics -> the sum of weights[positions[k]] times the k-th array, normalised where marked
void mixture(const Call& call) {
  const Mixture of(call, 0);
  const Rows rows(of.channels, call.size(1));
  const Index count = of.count, channels = of.channels, padded = rows.padded();
  std::vector<float> values((count + 1) * channels);  // the factors of each array, and of 1
  for (Index c = 0; c < channels; ++c) {
    double shift = 0;
    for (Index k = 0; k < count; ++k) {
      const double factor = of.weights[k] * of.inverse[k][c];
      values[k * channels + c] = static_cast<float>(factor);
      if (of.means[k]) shift -= factor * of.means[k][c];
    }
    values[count * channels + c] = static_cast<float>(shift);
  }
  const Repeated repeated(rows, parts(values, count + 1));
  const float *factors = repeated[0], *constant = repeated[count];
  const float* const* arrays = of.arrays.data();
  float* out = call.result(0);
  constexpr Index kTogether = 6;  // arrays read side by side; the sum so far stays in the cache
  parallel(call.pool, rows.tasks, [=](Index task) {
    for (Index first = 0; first < count; first += kTogether) {
      const Index last = std::min(count, first + kTogether);
      each_vector(rows, task, [=](Index at, Index j, int n) {
        Vec sum = first ? load(out + at, n) : load(constant + j);
        for (Index k = first; k < last; ++k) sum += load(factors + k * padded + j) * load(arrays[k] + at, n);
        store(out + at, sum, n);
      });
    }
  });
}

// dy, weights, arrays, statistics -> d weights, and the gradients of the arrays, which the statistics are of
void mixture_backward(const Call& call) {
  const Mixture of(call, 1);
  const Rows rows(of.channels, call.size(0));
  const Index count = of.count, channels = of.channels, width = rows.width;
  const double pixels = static_cast<double>(rows.total / channels);
  const float* dy = call.arg(0);

  // Sums a channel of dy, and of dy times each array about its mean; two at a time.
  const Index sum_count = ceil_div(count + 1, 2) * 2;
  const Scratch<double> columns(rows.tasks * sum_count * width);
  const Repeated means(rows, of.means);
  parallel(call.pool, rows.tasks, [&](Index task) {
    double* mine = columns + task * sum_count * width;
    const float *x = of.arrays[0], *m = means[0];
    sum_columns<2>(rows, task, mine, [=](Index at, Index j, int n, Vec* s) {
      const Vec g = load(dy + at, n);
      s[0] += g;
      s[1] += g * (load(x + at, n) - load(m + j));
    });
    for (Index k = 1; k < count; k += 2) {
      const Index next = std::min(k + 1, count - 1);  // an odd one is summed twice
      const float *x = of.arrays[k], *m = means[k], *next_x = of.arrays[next], *next_m = means[next];
      sum_columns<2>(rows, task, mine + (k + 1) * width, [=](Index at, Index j, int n, Vec* s) {
        const Vec g = load(dy + at, n);
        s[0] += g * (load(x + at, n) - load(m + j));
        s[1] += g * (load(next_x + at, n) - load(next_m + j));
      });
    }
  });
  const std::vector<double> sums = rows.join(columns, sum_count);

  std::vector<double> weights(call.size(1));
  std::vector<float> values(3 * count * channels);  // the factors of dy, of x - mean and of 1 in the gradients
  for (Index k = 0; k < count; ++k) {
    for (Index c = 0; c < channels; ++c) {
      const double inverse = of.inverse[k][c], factor = of.weights[k] * inverse, along = sums[(k + 1) * channels + c];
      float* to = values.data() + 3 * k * channels + c;
      weights[of.positions[k]] += inverse * along;
      to[0] = static_cast<float>(factor);
      to[channels] = static_cast<float>(-factor * inverse * inverse * along / pixels);
      to[2 * channels] = static_cast<float>(-factor * sums[c] / pixels);
    }
  }
  std::copy(weights.begin(), weights.end(), call.result(0));
  const Repeated factors(rows, parts(values, 3 * count));
  parallel(call.pool, rows.tasks, [&](Index task) {
    for (Index k = 0; k < count; ++k) {
      const float *x = of.arrays[k], *m = means[k], *a = factors[3 * k], *b = factors[3 * k + 1],
                  *c = factors[3 * k + 2];
      float* dx = call.result(1 + k);
      const Index from_end = rows.tasks - 1 - task;
      if (of.means[k]) {
        each_vector(rows, from_end, [=](Index at, Index j, int n) {
          const Vec centred = load(x + at, n) - load(m + j);
          store(dx + at, load(dy + at, n) * load(a + j) + (centred * load(b + j) + load(c + j)), n);
        });
      } else {
        each_vector(rows, from_end, [=](Index at, Index j, int n) {
          store(dx + at, load(dy + at, n) * load(a + j), n);
        });
      }
    }
  });
}

}  // namespace
}  // namespace nas

NAS_HANDLER(relu);
NAS_HANDLER(relu_backward);
NAS_HANDLER(add);
NAS_HANDLER(weighted_sum);
NAS_HANDLER(weighted_sum_backward);
NAS_HANDLER(mixture);
NAS_HANDLER(mixture_backward);
