// Log-softmax over the products of a tile while these are in the cache, for whichever Lanes are in scope; a lane is a
// row.
namespace rl_think {
namespace {

template <bool capped, bool entropy>
void fold_lanes(float* acc, int64_t count, Scaling scaling, LaneState state) {
  const Lanes::F rate = Lanes::set(scaling.inv_temperature * kLog2E), old_max = Lanes::load(state.max);
  Lanes::F max = old_max;
  for (int64_t i = 0; i < count; ++i) {
    const Lanes::F v = capped_logit<capped>(Lanes::load(acc + i * kPanel), scaling);
    if constexpr (capped) Lanes::store(acc + i * kPanel, v);
    max = Lanes::max(v, max);  // NaN is dropped here; the sum will hold it
  }
  const Lanes::F zero = Lanes::set(0.0f), step = Lanes::sub(old_max, max), factor = Lanes::exp2(step, rate, zero);
  Lanes::F tile = zero, weighted = zero;
  for (int64_t i = 0; i < count; ++i) {
    const Lanes::F d = Lanes::sub(Lanes::load(acc + i * kPanel), max);
    Lanes::F e, t;
    tile = Lanes::plus_exp2(tile, d, rate, e, t);
    if constexpr (entropy) weighted = Lanes::fma(e, t, weighted);
  }
  const Lanes::F sum = Lanes::mul(Lanes::load(state.sum), factor), carry = Lanes::mul(Lanes::load(state.carry), factor);
  if constexpr (entropy) {
    // A step of -inf or the like comes with a factor of 0.
    const Lanes::F bits = Lanes::max(Lanes::set(kLowest), Lanes::mul(step, rate));
    const Lanes::F moved = Lanes::mul(Lanes::add(sum, carry), bits);
    Lanes::store(state.weighted, Lanes::add(Lanes::fma(Lanes::load(state.weighted), factor, moved), weighted));
  }
  // The rounding of each addition is kept: thousands of small tiles would otherwise vanish beside a large sum.
  const Lanes::F total = Lanes::add(sum, tile), part = Lanes::sub(total, sum);
  const Lanes::F lost = Lanes::add(Lanes::sub(sum, Lanes::sub(total, part)), Lanes::sub(tile, part));
  Lanes::store(state.sum, total);
  Lanes::store(state.carry, Lanes::add(carry, lost));
  Lanes::store(state.max, max);
}

void fold(float* acc, int64_t count, int64_t lanes, Scaling scaling, bool entropy, LaneState s) {
  const bool capped = scaling.softcap > 0;
  const auto one = capped ? (entropy ? fold_lanes<true, true> : fold_lanes<true, false>)
                          : (entropy ? fold_lanes<false, true> : fold_lanes<false, false>);
  for (int64_t i = 0; i < lanes; i += Lanes::width) {
    one(acc + i, count, scaling, {s.max + i, s.sum + i, s.carry + i, s.weighted + i});
  }
}

template <bool capped>
void tile_gradient_of(float* acc, int64_t count, int64_t lanes, Scaling scaling, const float* grad, const float* max,
                      const float* log_sum) {
  for (int64_t i = 0; i < lanes; i += Lanes::width) {
    GradientOfLogit of_logit(scaling, {0, 0, 0});
    of_logit.max = Lanes::load(max + i);
    of_logit.log2_sum = Lanes::mul(Lanes::load(log_sum + i), Lanes::set(-kLog2E));
    of_logit.scale = Lanes::mul(Lanes::load(grad + i), Lanes::set(-scaling.inv_temperature));
    for (int64_t j = 0; j < count; ++j) {
      float* at = acc + j * kPanel + i;
      Lanes::store(at, of_logit.template operator()<capped>(Lanes::load(at), scaling));
    }
  }
}

void tile_gradient(float* acc, int64_t count, int64_t lanes, Scaling scaling, const float* grad, const float* max,
                   const float* log_sum) {
  const auto of = scaling.softcap > 0 ? tile_gradient_of<true> : tile_gradient_of<false>;
  of(acc, count, lanes, scaling, grad, max, log_sum);
}

template <Dtype D>
void widen_dtype(const char* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + Lanes::width <= n; i += Lanes::width) Lanes::store(out + i, Lanes::load_in_order<D>(x + i * item_size<D>));
  for (; i < n; ++i) out[i] = read<D>(x + i * item_size<D>);
}

void widen(Dtype dtype, const char* x, float* out, int64_t n) {
  if (dtype == Dtype::f32) return widen_dtype<Dtype::f32>(x, out, n);
  if (dtype == Dtype::bf16) return widen_dtype<Dtype::bf16>(x, out, n);
  widen_dtype<Dtype::f16>(x, out, n);
}

template <Dtype D>
void narrow_dtype(const float* x, char* out, int64_t n) {
  int64_t i = 0;
  for (; i + Lanes::width <= n; i += Lanes::width) Lanes::store_in_order<D>(out + i * item_size<D>, Lanes::load(x + i));
  for (; i < n; ++i) write<D>(out + i * item_size<D>, x[i]);
}

void narrow(Dtype dtype, const float* x, char* out, int64_t n) {
  if (dtype == Dtype::f32) return narrow_dtype<Dtype::f32>(x, out, n);
  if (dtype == Dtype::bf16) return narrow_dtype<Dtype::bf16>(x, out, n);
  narrow_dtype<Dtype::f16>(x, out, n);
}

// Everything for the Lanes in scope; a bf16 unit is added where there is one.
Kernels kernels_of(const char* name) {
  return {name,
          scan,
          gradient,
          clear,
          capped_number,
          widen,
          narrow,
          kPanel,
          kTileRows,
          multiply<MultiplyFloats, 2>,
          multiply<MultiplyFloats, 1>,
          nullptr,
          nullptr,
          fold,
          tile_gradient};
}

}  // namespace
}  // namespace rl_think
