// A chunk of the vocabulary into the running state of its rows: what makes the logits of a linear head needless.
#include "row.cuh"

namespace rl_think::gpu {
namespace {

struct Task {
  Chunk chunk;
  int columns;
  Scale scale;
  Running running;
  RowResults results;  // logprob is null but for the last chunk
  const int64_t* listed;
};

template <bool kCap, bool kBias>
struct Value {
  Scale scale;
  const float* bias;
  __device__ __forceinline__ float operator()(float x, int j) const {
    return capped<kCap>(kBias ? x + bias[j] : x, scale);
  }
};

// Whoever holds it: the state of the chunks before, this chunk's, and the label where it is in this chunk.
template <bool kEntropy>
__device__ void keep(const Task& task, int64_t r, const State& chunk, float label, bool here) {
  const Running& running = task.running;
  const State before{running.max[r], running.sum[r], kEntropy ? running.weighted[r] : 0.0f};
  const State state = merged<kEntropy>(before, chunk, task.scale.exponent);
  label = here ? label : running.label[r];
  running.max[r] = state.max, running.sum[r] = state.sum, running.label[r] = label;
  if (kEntropy) running.weighted[r] = state.weighted;
  if (!task.results.logprob) return;
  // NaN at the label is a label that no chunk had, or a NaN among the logits: both make the row NaN.
  write_results(task.results, task.listed ? task.listed[r] : r, state, label, !isnan(label), task.scale);
}

template <bool kCap, bool kEntropy, bool kBias>
__global__ void __launch_bounds__(kThreads, 4) fold_kernel(Task task) {
  for (int64_t r = blockIdx.x; r < task.chunk.num_rows; r += gridDim.x) {
    const float* data = task.chunk.logits + r * task.chunk.stride;
    const Value<kCap, kBias> value{task.scale, kBias ? task.chunk.bias + task.chunk.first : nullptr};
    float label = 0.0f;
    bool here = false;
    if (threadIdx.x == 0) {
      const int64_t j = task.chunk.labels[r] - task.chunk.first;
      here = j >= 0 && j < task.columns;
      if (here) label = value(data[j], static_cast<int>(j));
    }
    State state = fold_row<kThreads, kEntropy>(data, task.columns, threadIdx.x, task.scale.exponent, value);
    state = merge_group<kThreads, kEntropy>(state, task.scale.exponent);
    if (threadIdx.x == 0) keep<kEntropy>(task, r, state, label, here);
  }
}

template <bool kCap, bool kEntropy>
void launch_fold(const Task& task, void* stream) {
  launch(task.chunk.bias ? fold_kernel<kCap, kEntropy, true> : fold_kernel<kCap, kEntropy, false>, task.chunk.num_rows,
         kThreads, stream, task);
}

template <bool kCap>
void launch_fold(const Task& task, void* stream) {
  task.running.weighted ? launch_fold<kCap, true>(task, stream) : launch_fold<kCap, false>(task, stream);
}

}  // namespace

const char* fold(const Chunk& chunk, const Numbers& numbers, const Running& running, const RowResults& results,
                 const int64_t* listed, const Place& place) {
  if (chunk.num_rows == 0 || chunk.columns == 0) return nullptr;
  if (const char* text = too_long(chunk.columns)) return text;
  if (const char* text = enter(place)) return text;
  const Task task{chunk, static_cast<int>(chunk.columns), scale_of(numbers), running, results, listed};
  task.scale.softcap > 0 ? launch_fold<true>(task, place.stream) : launch_fold<false>(task, place.stream);
  return error_text(cudaGetLastError());
}

}  // namespace rl_think::gpu
