// A few rows of a times a panel of b, for whichever Lanes are in scope.
//
// A lane is a row of hidden states, packed once as [depth][panel]; the weight is read as it lies, each of its numbers
// once per panel, as a broadcast. So nothing of the vocabulary's size is ever packed, and the statistics need no sums
// across lanes.
namespace rl_think {
namespace {

#ifndef RL_THINK_TILE_ROWS
#error "how many rows of a fit into the registers"
#endif
constexpr int kTileRows = RL_THINK_TILE_ROWS;
constexpr int kPanel = 2 * Lanes::width;

struct MultiplyFloats {
  using Operand = Lanes::F;
  static Operand load(const char* b) { return Lanes::load(reinterpret_cast<const float*>(b)); }
  static Operand broadcast(const char* a) { return Lanes::set(*reinterpret_cast<const float*>(a)); }
  static Lanes::F add_product(Operand a, Operand b, Lanes::F sum) { return Lanes::fma(a, b, sum); }
};

// The sums of so many products are added up at a time: one long chain would gather its roundings.
constexpr int64_t kRun = 64;

template <class Arithmetic, int vectors>
void multiply(const Product& p) {
  const char *a = p.a, *b = p.b, *ahead = p.ahead;
  for (int64_t begin = 0; begin < p.depth; begin += kRun) {
    Lanes::F acc[kTileRows][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      for (int u = 0; u < vectors; ++u) acc[i][u] = Lanes::set(0.0f);
    }
    for (int64_t k = least(kRun, p.depth - begin); k > 0; --k) {
      typename Arithmetic::Operand lanes[vectors];
#pragma GCC unroll 2
      for (int u = 0; u < vectors; ++u) lanes[u] = Arithmetic::load(b + u * 4 * Lanes::width);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        const typename Arithmetic::Operand number = Arithmetic::broadcast(a + i * p.a_row);
#pragma GCC unroll 2
        for (int u = 0; u < vectors; ++u) acc[i][u] = Arithmetic::add_product(number, lanes[u], acc[i][u]);
      }
      a += p.a_step;
      b += p.b_step;
      __builtin_prefetch(ahead, 0, 2);
      ahead += p.ahead_step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      for (int u = 0; u < vectors; ++u) {
        float* sum = p.acc + i * kPanel + u * Lanes::width;
        Lanes::store(sum, begin == 0 ? acc[i][u] : Lanes::add(Lanes::load(sum), acc[i][u]));
      }
    }
  }
}

}  // namespace
}  // namespace rl_think
