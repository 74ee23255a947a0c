#include "table.h"
#include "lanes_avx512.h"
#include "math.inl"
#include "rows.inl"
#define RL_THINK_TILE_ROWS 14
#include "multiply.inl"
#include "tiles.inl"

namespace rl_think {

const Kernels* avx512_kernels() {
  static const Kernels table = kernels_of("avx512");
  return &table;
}

}  // namespace rl_think
