// What each instruction set brings; scalar, AVX2 and AVX-512 compile the same rows.inl and tiles.inl.
#pragma once

#include <cstdint>

#include "../api.h"

namespace rl_think {

// What one pass over (a part of) a row knows: sums of exp((v - max) / T), and of that times (v - max) / T.
struct RowState {
  float max;
  double sum, weighted;
};

// dx[j] = scale * exp((v[j] - max) / T - log_sum) * (1 - tanh(x[j] / softcap)^2)
struct RowGradient {
  float scale, max, log_sum;
};

// A block of products: acc[i][lane] = sum over k of a[i][k] * b[k][lane], a by rows, b in panels of `panel` lanes.
struct Product {
  int64_t depth;
  const char* a;
  int64_t a_row, a_step;  // bytes
  const char* b;
  int64_t b_step;  // bytes
  float* acc;      // [tile_rows][panel]
  // What is read next, fetched meanwhile: many streams of short rows are too much for the machine's own prefetching.
  const char* ahead = nullptr;
  int64_t ahead_step = 0;
};

// Log-softmax statistics of `panel` rows that grow by tile_rows logits at a time; a lane is a row.
struct LaneState {
  float *max, *sum, *carry, *weighted;  // sum + carry is the sum; all [panel]
};

struct Kernels {
  const char* name;
  RowState (*scan)(Dtype, const char* x, int64_t n, Scaling, bool entropy);
  void (*gradient)(Dtype, const char* x, char* out, int64_t n, Scaling, RowGradient, bool streaming);
  void (*clear)(char* out, int64_t bytes);  // zeros, past the caches
  float (*capped)(float x, float softcap);  // v of one number, rounded as the vectors round it
  void (*widen)(Dtype, const char* x, float* out, int64_t n);
  void (*narrow)(Dtype, const float* x, char* out, int64_t n);

  int64_t panel;      // lanes of a panel
  int64_t tile_rows;  // rows of a
  void (*multiply)(const Product&);
  void (*multiply_narrow)(const Product&);  // half a panel
  void (*multiply_bf16)(const Product&);    // pairs of bf16 in a and b; null without the unit
  void (*multiply_bf16_narrow)(const Product&);
  // acc holds logits [count][panel]: cap them in place (v) and fold them into the state.
  void (*fold)(float* acc, int64_t count, int64_t lanes, Scaling, bool entropy, LaneState);
  // acc holds logits [count][panel]: overwrite them by -p * grad / T * (1 - tanh^2); [panel] grad, max, log_sum.
  void (*tile_gradient)(float* acc, int64_t count, int64_t lanes, Scaling, const float* grad, const float* max,
                        const float* log_sum);
};

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
void add_bf16_unit(Kernels&);

// The best that this machine runs, or the one named by `use` or the environment's RL_THINK_ISA.
const Kernels& kernels();
bool use(const char* name);

}  // namespace rl_think
