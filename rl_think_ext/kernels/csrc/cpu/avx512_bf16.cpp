// Products of pairs of bf16, summed in float32 (AVX512_BF16): the one file that may use the instruction.
#include "table.h"
#include "lanes_avx512.h"
#define RL_THINK_TILE_ROWS 14
#include "multiply.inl"

namespace rl_think {
namespace {

struct MultiplyPairs {
  using Operand = __m512bh;
  static Operand load(const char* b) { return as_pairs(_mm512_loadu_si512(b)); }
  static Operand broadcast(const char* a) {
    int32_t pair;
    std::memcpy(&pair, a, 4);
    return as_pairs(_mm512_set1_epi32(pair));
  }
  static Lanes::F add_product(Operand a, Operand b, Lanes::F sum) { return _mm512_dpbf16_ps(sum, a, b); }

 private:
  static Operand as_pairs(__m512i bits) { return (Operand)bits; }
};

}  // namespace

void add_bf16_unit(Kernels& table) {
  table.multiply_bf16 = multiply<MultiplyPairs, 2>;
  table.multiply_bf16_narrow = multiply<MultiplyPairs, 1>;
}

}  // namespace rl_think
