// Log-probability from hidden states and the head's weight, on the CPU; no row of logits is ever whole.
#pragma once

#include "select.h"
#include "table.h"

namespace rl_think {

struct Head {
  Grid hidden;         // [num_rows, depth]
  const char* weight;  // [vocab, depth], of the hidden states' dtype
  int64_t depth, vocab, weight_stride;
  const char* bias;  // [vocab] of that dtype, or null
  Scaling scaling;
};

void linear_forward(const Head&, const int64_t* labels, const Selection&, const RowResults&, int num_threads);

// Any of the gradients may be null: [num_rows, depth] (only wanted rows are written), [vocab, depth], [vocab],
// contiguous, in the hidden states' dtype; every sum is float32.
void linear_backward(const Head&, const int64_t* labels, const Selection&, const float* grad, const float* max,
                     const float* log_sum, char* grad_hidden, char* grad_weight, char* grad_bias, int num_threads);

}  // namespace rl_think
