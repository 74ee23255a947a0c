// The border between bind.cpp (C++) and the kernels (.cu): plain pointers and numbers. Each function launches on a
// stream, never waits, and returns nullptr or the text of CUDA's error.
#pragma once

#include "../api.h"

namespace rl_think::gpu {

// z = v / temperature, v = softcap * tanh(x / softcap), v = x where softcap is 0. Doubles, so that a kernel's constants
// are rounded once.
struct Numbers {
  double temperature, softcap;
};

// Where to launch: `stream` is a cudaStream_t of `device`.
struct Place {
  int device;
  void* stream;
};

// A row is cut into `splits` parts; with more than one, `scratch` holds 3 floats for each part of each wanted row.
struct Split {
  int splits;
  float* scratch;
};

// What is known of each compact row so far: max of v, sum of e = exp((v - max) / temperature), sum of e * log2(e) (null
// without entropy), v at the label. Begins as -inf, 0, 0, NaN.
struct Running {
  float *max, *sum, *weighted, *label;
};

// Compact rows of float32 logits, columns [first, first + columns) of the vocabulary, before bias and cap.
struct Chunk {
  const float* logits;
  int64_t num_rows, columns, stride, first;
  const float* bias;      // [vocab] or null
  const int64_t* labels;  // [num_rows]
};

const char* forward(const Grid& logits, int64_t vocab, const int64_t* labels, const Selection& rows,
                    const Numbers& numbers, const RowResults& results, const Split& split, const Place& place);

const char* partials(const Grid& logits, int64_t vocab, const int64_t* labels, int64_t first, const Selection& rows,
                     const Numbers& numbers, const RowPartials& results, const Split& split, const Place& place);

// Writes the gradient of wanted rows and zeros on masked ones; `out` may be `logits` itself. With `listed` rows the
// others are left as they are.
const char* backward(const Grid& logits, const Grid& out, int64_t vocab, const int64_t* labels, int64_t first,
                     const Selection& rows, const Numbers& numbers, const float* grad, const float* max,
                     const float* log_sum, const Place& place);

// Adds a chunk to the state; with results.logprob also finishes the rows, into results[listed[i]] (results[i] without).
const char* fold(const Chunk& chunk, const Numbers& numbers, const Running& running, const RowResults& results,
                 const int64_t* listed, const Place& place);

// The gradient with respect to the logits of a chunk, in `dtype`; `out` may be the chunk itself where dtype is float32.
const char* chunk_gradient(const Chunk& chunk, void* out, Dtype dtype, int64_t out_stride, const Numbers& numbers,
                           const float* grad, const float* max, const float* log_sum, const Place& place);

}  // namespace rl_think::gpu
