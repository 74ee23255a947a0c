#include "table.h"
#include "lanes_scalar.h"
#include "math.inl"
#include "rows.inl"
#define RL_THINK_TILE_ROWS 4
#include "multiply.inl"
#include "tiles.inl"

namespace rl_think {

const Kernels* scalar_kernels() {
  static const Kernels table = kernels_of("scalar");
  return &table;
}

}  // namespace rl_think
