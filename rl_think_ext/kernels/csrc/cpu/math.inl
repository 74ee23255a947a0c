// exp2 and tanh for whichever Lanes are in scope.
#include <initializer_list>

namespace rl_think {
namespace {

// Below this 2^t counts as nothing; it also keeps -inf out of the arithmetic.
constexpr float kLowest = -126.0f;

// 2^t for t in [-126, 127], NaN and +inf to NaN; relative error below 1e-7. The polynomial is 2^r on [-1/2, 1/2] with
// the least relative error among those of degree 6 that are exactly 1 at 0.
inline Lanes::F exp2_of(Lanes::F t) {
  const Lanes::F n = Lanes::round(t), r = Lanes::sub(t, n);
  Lanes::F p = Lanes::set(0x1.41d334p-13f);
  for (float c : {0x1.5f456ap-10f, 0x1.3b2dbcp-7f, 0x1.c6aed4p-5f, 0x1.ebfbdap-3f, 0x1.62e430p-1f, 1.0f}) {
    p = Lanes::fma(p, r, Lanes::set(c));
  }
  return Lanes::times_power(p, n);
}

inline Lanes::F exp2_above_lowest(Lanes::F t) { return exp2_of(Lanes::max(Lanes::set(kLowest), t)); }

// Relative error below 3e-7: a polynomial near 0, where (1 - e) / (1 + e) would cancel.
inline Lanes::F tanh_of(Lanes::F y) {
  const Lanes::F size = Lanes::abs(y), square = Lanes::mul(y, y), one = Lanes::set(1.0f);
  Lanes::F q = Lanes::set(0.002147461986169219f);
  for (float c : {-0.008179442025721073f, 0.021700028330087662f, -0.05394626408815384f, 0.13333198428153992f,
                  -0.3333333134651184f}) {
    q = Lanes::fma(q, square, Lanes::set(c));
  }
  const Lanes::F small = Lanes::fma(Lanes::mul(y, square), q, y);
  const Lanes::F e = exp2_above_lowest(Lanes::mul(size, Lanes::set(-2.0f * kLog2E)));
  const Lanes::F large = Lanes::with_sign(Lanes::div(Lanes::sub(one, e), Lanes::add(one, e)), y);
  return Lanes::if_below(size, Lanes::set(0.625f), small, large);
}

}  // namespace
}  // namespace rl_think
