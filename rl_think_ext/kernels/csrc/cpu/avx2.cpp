#include "table.h"
#include "lanes_avx2.h"
#include "math.inl"
#include "rows.inl"
#define RL_THINK_TILE_ROWS 6
#include "multiply.inl"
#include "tiles.inl"

namespace rl_think {

const Kernels* avx2_kernels() {
  static const Kernels table = kernels_of("avx2");
  return &table;
}

}  // namespace rl_think
