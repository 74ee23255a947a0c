// Log-probability from logits, on the CPU.
#pragma once

#include "select.h"
#include "table.h"

namespace rl_think {

// The first wanted row whose label is outside [0, vocab), or -1; a listed row that is no row or out of order at
// position i is -2 - i. Without labels only listed rows are checked.
int64_t first_bad_row(const Selection&, const int64_t* labels, int64_t vocab);

// log softmax(z)[label] and the state of each wanted row; the others are not touched.
void rows_forward(const Grid& logits, int64_t vocab, const int64_t* labels, const Selection&, Scaling,
                  const RowResults&, int num_threads);

// One shard of the vocabulary: labels [first, first + vocab) are here.
void rows_partials(const Grid& logits, int64_t vocab, const int64_t* labels, int64_t first, const Selection&, Scaling,
                   const RowPartials&, int num_threads);

// The gradient of the wanted rows, into `out` (which may be the logits); `clear` writes 0 into the others.
void rows_backward(const Grid& logits, const Grid& out, int64_t vocab, const int64_t* labels, int64_t first,
                   const Selection&, Scaling, const float* grad, const float* max, const float* log_sum, bool clear,
                   int num_threads);

// Two parts of a row as one.
RowState merged(const RowState& a, const RowState& b, float inv_temperature);

// The gradient of the logit x at the label: (1 - p) would cancel where p is near 1.
float gradient_at_label(float x, float grad, float max, float log_sum, Scaling);

// Writes row r's results; `label` is v at its label.
void finish(const RowState&, float label, float inv_temperature, int64_t r, const RowResults&);

}  // namespace rl_think
