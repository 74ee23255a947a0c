// One pass over a row of logits, for whichever Lanes are in scope.
#include <cfloat>
#include <cmath>

namespace rl_think {
namespace {

constexpr int64_t kPair = 2 * Lanes::width;
// Sums are float32 within a block and float64 across blocks.
constexpr int64_t kBlock = 512 * Lanes::width;
// In bits: as far as a logit may lie above the reference before the sum so far is rescaled. The exponent is rounded to
// 24 bits, so the largest terms are off by its size times 2^-24.
constexpr float kHeadroom = 4.0f;

// The machine's own prefetching ends at each page: ask for what comes a page later, a line of 64 bytes at a time.
template <Dtype D>
inline void fetch_ahead(const char* x) {
  constexpr int64_t kAhead = 2048;
  for (int64_t i = 0; i < kPair * item_size<D>; i += 64) __builtin_prefetch(x + kAhead + i);
}

struct Block {
  float max, sum, weighted;
};

template <bool capped>
inline Lanes::F capped_logit(Lanes::F x, Scaling scaling) {
  if constexpr (!capped) return x;
  return Lanes::mul(Lanes::set(scaling.softcap), tanh_of(Lanes::mul(x, Lanes::set(1.0f / scaling.softcap))));
}

// Sums of 2^t and t * 2^t, t = (v - reference) * rate, over n numbers; n is a multiple of kPair.
template <Dtype D, bool capped, bool entropy>
Block scan_block(const char* x, int64_t n, Scaling scaling, float reference) {
  const Lanes::F rate = Lanes::set(scaling.inv_temperature * kLog2E), origin = Lanes::set(reference);
  Lanes::F max[2], sum[2], weighted[2];
  for (int u = 0; u < 2; ++u) {
    max[u] = Lanes::set(-INFINITY);
    sum[u] = weighted[u] = Lanes::set(0.0f);
  }
  for (int64_t i = 0; i < n; i += kPair) {
    Lanes::F v[2];
    fetch_ahead<D>(x + i * item_size<D>);
    Lanes::load_pair<D>(x + i * item_size<D>, v[0], v[1]);
    for (int u = 0; u < 2; ++u) {
      v[u] = capped_logit<capped>(v[u], scaling);
      max[u] = Lanes::max(max[u], v[u]);
      const Lanes::F d = Lanes::sub(v[u], origin);
      Lanes::F e, t;
      sum[u] = Lanes::plus_exp2(sum[u], d, rate, e, t);
      if constexpr (entropy) weighted[u] = Lanes::fma(e, t, weighted[u]);
    }
  }
  return {Lanes::highest(Lanes::max(max[0], max[1])), Lanes::sum(Lanes::add(sum[0], sum[1])),
          Lanes::sum(Lanes::add(weighted[0], weighted[1]))};
}

// A reference that the first block will hardly leave behind.
template <Dtype D, bool capped>
float first_reference(const char* x, int64_t n, Scaling scaling) {
  if (n == 0) return -FLT_MAX;
  Lanes::F max = Lanes::set(-FLT_MAX);
  for (int64_t i = 0; i < n; i += kPair) {
    Lanes::F a, b;
    Lanes::load_pair<D>(x + i * item_size<D>, a, b);
    max = Lanes::max(Lanes::max(a, b), max);  // NaN is dropped here; the sum will hold it
  }
  const Lanes::F v = capped_logit<capped>(max, scaling);
  return Lanes::highest(v);
}

// The n logits behind the last whole pair, capped, and -inf where there are none.
template <Dtype D, bool capped>
void last_logits(const char* x, int64_t n, Scaling scaling, float* v) {
  for (int64_t i = 0; i < kPair; ++i) v[i] = i < n ? read<D>(x + i * item_size<D>) : 0.0f;
  for (int64_t i = 0; i < kPair; i += Lanes::width) {
    Lanes::store(v + i, capped_logit<capped>(Lanes::load(v + i), scaling));
  }
  for (int64_t i = n; i < kPair; ++i) v[i] = -INFINITY;
}

// The state of n numbers.
template <Dtype D, bool capped, bool entropy>
RowState scan_row(const char* x, int64_t n, Scaling scaling) {
  const double rate = static_cast<double>(scaling.inv_temperature * kLog2E);
  const int64_t whole = n / kPair * kPair;
  float reference = first_reference<D, capped>(x, least(whole, 4 * kPair), scaling), max = -INFINITY;
  double sum = 0, weighted = 0;
  const auto fold = [&](const auto& scan) {
    Block found = scan(reference);
    // Too far above: the sum so far moves to the new reference, and the block is read again, out of the cache.
    if (static_cast<float>((found.max - reference) * rate) > kHeadroom) {
      const double shift = (static_cast<double>(reference) - found.max) * rate, factor = std::exp2(shift);
      weighted = factor == 0 ? 0 : (weighted + sum * shift) * factor;
      sum *= factor;
      reference = found.max;
      found = scan(reference);
    }
    if (found.max > max) max = found.max;
    sum += found.sum;
    weighted += found.weighted;
  };
  for (int64_t i = 0; i < whole; i += kBlock) {
    fold([&](float from) {
      return scan_block<D, capped, entropy>(x + i * item_size<D>, least(kBlock, whole - i), scaling, from);
    });
  }
  if (whole < n) {
    float v[kPair];
    last_logits<D, capped>(x + whole * item_size<D>, n - whole, scaling, v);
    const char* last = reinterpret_cast<const char*>(v);
    fold([&](float from) { return scan_block<Dtype::f32, false, entropy>(last, kPair, scaling, from); });
  }
  if (max == -INFINITY && sum == sum) return {max, 0, 0};
  const double shift = (static_cast<double>(reference) - max) * rate, factor = std::exp2(shift);
  return {max, sum * factor, (weighted + sum * shift) * factor * kLn2};
}

template <Dtype D>
RowState scan_dtype(const char* x, int64_t n, Scaling scaling, bool entropy) {
  if (scaling.softcap > 0)
    return entropy ? scan_row<D, true, true>(x, n, scaling) : scan_row<D, true, false>(x, n, scaling);
  return entropy ? scan_row<D, false, true>(x, n, scaling) : scan_row<D, false, false>(x, n, scaling);
}

RowState scan(Dtype dtype, const char* x, int64_t n, Scaling scaling, bool entropy) {
  if (dtype == Dtype::f32) return scan_dtype<Dtype::f32>(x, n, scaling, entropy);
  if (dtype == Dtype::bf16) return scan_dtype<Dtype::bf16>(x, n, scaling, entropy);
  return scan_dtype<Dtype::f16>(x, n, scaling, entropy);
}

// -p * grad / T, times the slope of the cap; what is ruled out (-inf) gets exactly 0.
struct GradientOfLogit {
  Lanes::F rate, max, log2_sum, scale;

  GradientOfLogit(Scaling scaling, RowGradient row)
      : rate(Lanes::set(scaling.inv_temperature * kLog2E)),
        max(Lanes::set(row.max)),
        log2_sum(Lanes::set(-row.log_sum * kLog2E)),
        scale(Lanes::set(row.scale)) {}

  template <bool capped>
  Lanes::F operator()(Lanes::F x, Scaling scaling) const {
    const Lanes::F v = capped_logit<capped>(x, scaling);
    const Lanes::F out = Lanes::mul(Lanes::exp2(Lanes::sub(v, max), rate, log2_sum), scale);
    if constexpr (!capped) return out;
    return Lanes::mul(out, tanh_slope(Lanes::mul(x, Lanes::set(1.0f / scaling.softcap))));
  }
};

template <Dtype D, bool capped, bool streaming>
void gradient_row(const char* x, char* out, int64_t n, Scaling scaling, RowGradient row) {
  constexpr int64_t item = item_size<D>;
  const GradientOfLogit of_logit(scaling, row);
  const auto pair = [&]<bool stream>(const char* from, char* to) {
    Lanes::F a, b;
    Lanes::load_pair<D>(from, a, b);
    Lanes::store_pair<D, stream>(to, of_logit.template operator()<capped>(a, scaling),
                                 of_logit.template operator()<capped>(b, scaling));
  };
  const auto part = [&](int64_t begin, int64_t size) {
    char padded[kPair * item];
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, x + begin * item, size * item);
    pair.template operator()<false>(padded, padded);
    std::memcpy(out + begin * item, padded, size * item);
  };
  int64_t i = 0;
  if constexpr (streaming) {
    constexpr int64_t line = 4 * Lanes::width;
    i = least(n, (line - static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % line)) % line / item);
    if (i > 0) part(0, i);
  }
  for (; i + kPair <= n; i += kPair) pair.template operator()<streaming>(x + i * item, out + i * item);
  if constexpr (streaming) Lanes::fence();
  if (i < n) part(i, n - i);
}

template <Dtype D>
void gradient_dtype(const char* x, char* out, int64_t n, Scaling scaling, RowGradient row, bool streaming) {
  if (scaling.softcap > 0) return gradient_row<D, true, false>(x, out, n, scaling, row);
  return streaming ? gradient_row<D, false, true>(x, out, n, scaling, row)
                   : gradient_row<D, false, false>(x, out, n, scaling, row);
}

void gradient(Dtype dtype, const char* x, char* out, int64_t n, Scaling scaling, RowGradient row, bool streaming) {
  if (dtype == Dtype::f32) return gradient_dtype<Dtype::f32>(x, out, n, scaling, row, streaming);
  if (dtype == Dtype::bf16) return gradient_dtype<Dtype::bf16>(x, out, n, scaling, row, streaming);
  gradient_dtype<Dtype::f16>(x, out, n, scaling, row, streaming);
}

void clear(char* out, int64_t bytes) {
  constexpr int64_t line = 8 * Lanes::width;  // a pair of float32 registers
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % line);
  int64_t i = least(bytes, (line - misaligned) % line);
  std::memset(out, 0, i);
  const Lanes::F zero = Lanes::set(0.0f);
  for (; i + line <= bytes; i += line) Lanes::store_pair<Dtype::f32, true>(out + i, zero, zero);
  std::memset(out + i, 0, bytes - i);
  Lanes::fence();
}

float capped_number(float x, float softcap) {
  float out[Lanes::width];
  Lanes::store(out, capped_logit<true>(Lanes::set(x), {1.0f, softcap}));
  return out[0];
}

}  // namespace
}  // namespace rl_think
