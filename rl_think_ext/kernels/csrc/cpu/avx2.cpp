#include "table.h"
#include "lanes_avx2.h"
#include "math.inl"
#include "rows.inl"
#define RL_THINK_TILE_ROWS 6
#include "multiply.inl"
#include "tiles.inl"

namespace rl_think {

const Kernels* avx2_kernels() {
  static const Kernels table = {"avx2",
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
  return &table;
}

}  // namespace rl_think
