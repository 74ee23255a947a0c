#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../pool.h"
#include "numbers.h"

namespace rl_think {
namespace {

// A long row is cut here, whatever the number of threads, so that this number never changes a result.
constexpr int64_t kSegment = 32768;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

float capped_at(float x, Scaling scaling) { return scaling.softcap > 0 ? kernels().capped(x, scaling.softcap) : x; }

float logit_at(const Grid& logits, int64_t r, int64_t j) {
  return read(logits.dtype, logits.row(r) + j * logits.item());
}

RowState scan_part(const Grid& logits, int64_t r, int64_t begin, int64_t vocab, Scaling scaling, bool entropy) {
  const char* x = logits.row(r) + begin * logits.item();
  return kernels().scan(logits.dtype, x, std::min(kSegment, vocab - begin), scaling, entropy);
}

// Calls done(r, state) for every wanted row, in no particular order.
template <class Done>
void scan_rows(const Grid& logits, int64_t vocab, const Selected& rows, Scaling scaling, bool entropy, int num_threads,
               const Done& done) {
  const int64_t parts = (vocab + kSegment - 1) / kSegment;
  if (parts == 1) {
    const int64_t together = std::max<int64_t>(1, kSegment / vocab);
    parallel_for((rows.count() + together - 1) / together, num_threads, [&](int64_t task, int) {
      const int64_t end = std::min(rows.count(), (task + 1) * together);
      for (int64_t i = task * together; i < end; ++i)
        done(rows[i], scan_part(logits, rows[i], 0, vocab, scaling, entropy));
    });
    return;
  }
  std::vector<RowState> states(rows.count() * parts);
  parallel_for(rows.count() * parts, num_threads, [&](int64_t task, int) {
    states[task] = scan_part(logits, rows[task / parts], task % parts * kSegment, vocab, scaling, entropy);
  });
  for (int64_t i = 0; i < rows.count(); ++i) {
    RowState state = states[i * parts];
    for (int64_t k = 1; k < parts; ++k) state = merged(state, states[i * parts + k], scaling.inv_temperature);
    done(rows[i], state);
  }
}

}  // namespace

int64_t first_bad_row(const Selection& selection, const int64_t* labels, int64_t vocab) {
  const auto bad = [&](int64_t r) { return labels && (labels[r] < 0 || labels[r] >= vocab); };
  if (selection.listed) {
    for (int64_t i = 0, last = -1; i < selection.num_listed; last = selection.listed[i++]) {
      const int64_t r = selection.listed[i];
      if (r <= last || r >= selection.num_rows) return -2 - i;
      if (bad(r)) return r;
    }
    return -1;
  }
  for (int64_t r = 0; r < selection.num_rows; ++r) {
    if ((!selection.mask || selection.mask[r]) && bad(r)) return r;
  }
  return -1;
}

RowState merged(const RowState& a, const RowState& b, float inv_temperature) {
  // A part of nothing but -inf knows no sum; a part with a NaN hands it on.
  if (b.max == -INFINITY && b.sum == 0) return a;
  if (a.max == -INFINITY && a.sum == 0) return b;
  const bool first = a.max >= b.max;
  const RowState &high = first ? a : b, &low = first ? b : a;
  const double shift = (static_cast<double>(low.max) - high.max) * inv_temperature, factor = std::exp(shift);
  const double moved = factor == 0 ? 0 : (low.weighted + low.sum * shift) * factor;
  return {high.max, high.sum + low.sum * factor, high.weighted + moved};
}

float gradient_at_label(float x, float grad, float max, float log_sum, Scaling scaling) {
  const double logprob = (static_cast<double>(capped_at(x, scaling)) - max) * scaling.inv_temperature - log_sum;
  double slope = 1;
  if (scaling.softcap > 0) {
    const double e = std::exp(-2 * std::fabs(static_cast<double>(x) / scaling.softcap));
    slope = 4 * e / ((1 + e) * (1 + e));
  }
  return static_cast<float>(-std::expm1(logprob) * grad * scaling.inv_temperature * slope);
}

void finish(const RowState& state, float label, float inv_temperature, int64_t r, const RowResults& out) {
  const double log_sum = std::log(state.sum);
  const bool ruled_out = state.max == -INFINITY && state.sum == 0;
  const double logprob = ruled_out ? -INFINITY : (static_cast<double>(label) - state.max) * inv_temperature - log_sum;
  out.logprob[r] = static_cast<float>(logprob);
  if (out.max) out.max[r] = state.max;
  if (out.log_sum) out.log_sum[r] = static_cast<float>(log_sum);
  if (out.entropy) out.entropy[r] = static_cast<float>(ruled_out ? kNaN : log_sum - state.weighted / state.sum);
}

void rows_forward(const Grid& logits, int64_t vocab, const int64_t* labels, const Selection& selection, Scaling scaling,
                  const RowResults& out, int num_threads) {
  scan_rows(logits, vocab, Selected(selection), scaling, out.entropy, num_threads,
            [&](int64_t r, const RowState& state) {
              finish(state, capped_at(logit_at(logits, r, labels[r]), scaling), scaling.inv_temperature, r, out);
            });
}

void rows_partials(const Grid& logits, int64_t vocab, const int64_t* labels, int64_t first, const Selection& selection,
                   Scaling scaling, const RowPartials& out, int num_threads) {
  scan_rows(logits, vocab, Selected(selection), scaling, false, num_threads, [&](int64_t r, const RowState& state) {
    const int64_t j = labels[r] - first;
    out.max[r] = state.max;
    out.sum[r] = static_cast<float>(state.sum);
    out.label[r] = j >= 0 && j < vocab ? capped_at(logit_at(logits, r, j), scaling) * scaling.inv_temperature : 0.0f;
  });
}

void rows_backward(const Grid& logits, const Grid& out, int64_t vocab, const int64_t* labels, int64_t first,
                   const Selection& selection, Scaling scaling, const float* grad, const float* max,
                   const float* log_sum, bool clear, int num_threads) {
  const Selected rows(selection);
  const int64_t parts = (vocab + kSegment - 1) / kSegment, item = logits.item();
  const int64_t together = parts > 1 ? 1 : std::max<int64_t>(1, kSegment / std::max<int64_t>(1, vocab));
  // Past the caches: a gradient that is not written over its logits is not read again soon.
  const bool streaming = out.base != logits.base && rows.count() * vocab * item > (int64_t{8} << 20);
  const auto part = [&](int64_t r, int64_t begin) {
    const int64_t size = std::min(kSegment, vocab - begin), j = labels[r] - first;
    const bool here = j >= begin && j < begin + size;
    const float label = here ? logit_at(logits, r, j) : 0;  // in place it is overwritten next
    const RowGradient row = {-grad[r] * scaling.inv_temperature, max[r], log_sum[r]};
    char* target = out.row(r) + begin * item;
    kernels().gradient(logits.dtype, logits.row(r) + begin * item, target, size, scaling, row, streaming);
    if (!here) return;
    write(out.dtype, out.row(r) + j * item, gradient_at_label(label, grad[r], max[r], log_sum[r], scaling));
  };
  parallel_for((rows.count() * parts + together - 1) / together, num_threads, [&](int64_t task, int) {
    const int64_t end = std::min(rows.count() * parts, (task + 1) * together);
    for (int64_t i = task * together; i < end; ++i) part(rows[i / parts], i % parts * kSegment);
  });
  if (!clear) return;
  std::vector<int64_t> others;
  for (int64_t r = 0, i = 0; r < selection.num_rows; ++r) {
    if (i < rows.count() && rows[i] == r) {
      ++i;
    } else {
      others.push_back(r);
    }
  }
  parallel_for(static_cast<int64_t>(others.size()), num_threads,
               [&](int64_t i, int) { kernels().clear(out.row(others[i]), vocab * item); });
}

}  // namespace rl_think
