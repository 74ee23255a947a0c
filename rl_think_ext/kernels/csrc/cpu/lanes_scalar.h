// One lane, plain C++: runs everywhere, and is what the sanitizers see.
#pragma once

#include <cmath>

#include "numbers.h"

namespace rl_think {
namespace {

struct Lanes {
  using F = float;
  static constexpr int width = 1;

  static F set(float a) { return a; }
  static F load(const float* p) { return *p; }
  static void store(float* p, F a) { *p = a; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  // The second where one is NaN, as the vector instructions have it.
  static F max(F a, F b) { return a > b ? a : b; }
  static F abs(F a) { return std::fabs(a); }
  static F with_sign(F a, F sign) { return std::copysign(a, sign); }
  static F if_below(F a, F limit, F yes, F no) { return a < limit ? yes : no; }
  // 2^(d * rate + add) as p * power: see numbers.h.
  static F split(F d, F rate, F add, F& power, F& t) {
    t = max(kLowest, d * rate + add);
    const F shifted = t + kToInteger, n = shifted - kToInteger;
    power = from_bits(to_bits(shifted) << 23);
    return horner<Lanes>(t - n, kPowerAround0);
  }
  static F exp2(F d, F rate, F add) {
    F power, t;
    const F p = split(d, rate, add, power, t);
    return p * power;
  }
  // sum + 2^t for t = d * rate; the power and t too, for whom they are of use.
  static F plus_exp2(F sum, F d, F rate, F& e, F& t) {
    F power;
    const F p = split(d, rate, 0.0f, power, t);
    e = mul(p, power);
    return fma(p, power, sum);
  }
  static float sum(F a) { return a; }
  static float highest(F a) { return a; }

  template <Dtype D>
  static void load_pair(const char* x, F& a, F& b) {
    a = read<D>(x);
    b = read<D>(x + item_size<D>);
  }
  template <Dtype D, bool streaming>
  static void store_pair(char* x, F a, F b) {
    write<D>(x, a);
    write<D>(x + item_size<D>, b);
  }
  template <Dtype D>
  static F load_in_order(const char* x) {
    return read<D>(x);
  }
  template <Dtype D>
  static void store_in_order(char* x, F a) {
    write<D>(x, a);
  }
  static void fence() {}
};

}  // namespace
}  // namespace rl_think
