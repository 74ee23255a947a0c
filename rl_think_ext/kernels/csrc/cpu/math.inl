// tanh for whichever Lanes are in scope.
namespace rl_think {
namespace {

// tanh(y) / y - 1 over y^2, a polynomial in y^2 for |y| below 0.625, from the highest power down.
constexpr float kTanh[] = {0.002147461986169219f, -0.008179442025721073f, 0.021700028330087662f,
                           -0.05394626408815384f, 0.13333198428153992f,   -0.3333333134651184f};

// Relative error below 3e-7: the polynomial near 0, where (1 - e) / (1 + e) would cancel.
inline Lanes::F tanh_of(Lanes::F y) {
  const Lanes::F size = Lanes::abs(y), square = Lanes::mul(y, y), one = Lanes::set(1.0f);
  const Lanes::F small = Lanes::fma(Lanes::mul(y, square), horner<Lanes>(square, kTanh), y);
  const Lanes::F e = Lanes::exp2(size, Lanes::set(-2.0f * kLog2E), Lanes::set(0.0f));
  const Lanes::F large = Lanes::with_sign(Lanes::div(Lanes::sub(one, e), Lanes::add(one, e)), y);
  return Lanes::if_below(size, Lanes::set(0.625f), small, large);
}

// 1 - tanh(y)^2, which would cancel near the ends.
inline Lanes::F tanh_slope(Lanes::F y) {
  const Lanes::F one = Lanes::set(1.0f);
  const Lanes::F e = Lanes::exp2(Lanes::abs(y), Lanes::set(-2.0f * kLog2E), Lanes::set(0.0f));
  const Lanes::F sum = Lanes::add(one, e);
  return Lanes::div(Lanes::mul(Lanes::set(4.0f), e), Lanes::mul(sum, sum));
}

}  // namespace
}  // namespace rl_think
