// What Python hands over: raw pointers and 64-bit sizes, checked there. No torch header is included anywhere, so that
// one binary serves every torch.
#pragma once

#include <cstdint>

namespace rl_think {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// z = v / temperature with v = softcap * tanh(x / softcap); v = x where softcap is 0.
struct Scaling {
  float inv_temperature;
  float softcap;
};

// Rows of a matrix whose leading dimensions need not collapse: row r begins at
// base + (r / inner) * outer_stride + (r % inner) * inner_stride elements; the last dimension is contiguous.
struct Grid {
  void* base;
  Dtype dtype;
  int64_t inner, outer_stride, inner_stride;

  int64_t item() const { return dtype == Dtype::f32 ? 4 : 2; }
  char* row(int64_t r) const {
    const int64_t offset = (r / inner) * outer_stride + (r % inner) * inner_stride;
    return static_cast<char*>(base) + offset * item();
  }
};

// Which of `num_rows` rows are wanted: those listed, or those whose mask is true, or all.
struct Selection {
  int64_t num_rows;
  const int64_t* listed;  // strictly increasing
  int64_t num_listed;
  const uint8_t* mask;  // a byte a row: not a bool, of which C++ knows two values
};

// Results by row, [num_rows]: natural units. `max` is that of v, `log_sum` the log of sum(exp((v - max) /
// temperature)).
struct RowResults {
  float *logprob, *entropy, *max, *log_sum;  // all but logprob may be null
};

// Results of one shard of the vocabulary: `sum` is not a log, `label` is z at the label, 0 where it is not in the
// shard.
struct RowPartials {
  float *max, *sum, *label;
};

}  // namespace rl_think
