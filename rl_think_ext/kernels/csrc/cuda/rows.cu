// Log-probability from logits: one pass over a wanted row, by a block (a warp where rows are short), or by several
// blocks and a merge where wanted rows are few. Bound by reading the rows once.
#include "row.cuh"

namespace rl_think::gpu {
namespace {

constexpr int kShort = 4096;  // up to so many columns a warp does a row

struct Task {
  Grid logits;
  Selection rows;
  const int64_t* labels;
  int64_t first;
  int columns, splits;
  Scale scale;
  RowResults results;  // logprob is null for partials
  RowPartials partials;
  float* scratch;
};

template <bool kCap>
struct Value {
  Scale scale;
  __device__ __forceinline__ float operator()(float x, int) const { return capped<kCap>(x, scale); }
};

__device__ void write_masked(const Task& task, int64_t row) {
  if (task.results.logprob) {
    task.results.logprob[row] = 0.0f;
    if (task.results.max) task.results.max[row] = 0.0f;
    if (task.results.log_sum) task.results.log_sum[row] = 0.0f;
    if (task.results.entropy) task.results.entropy[row] = 0.0f;
  } else {
    task.partials.max[row] = task.partials.sum[row] = task.partials.label[row] = 0.0f;
  }
}

// v at the label, NaN where this shard does not have it.
template <class T, bool kCap>
__device__ __forceinline__ float label_value(const Task& task, int64_t row) {
  const int64_t j = task.labels[row] - task.first;
  if (j < 0 || j >= task.columns) return NAN;
  return capped<kCap>(Packed<T>::widen(row_at<const T>(task.logits, row)[j]), task.scale);
}

__device__ void write_row(const Task& task, int64_t row, const State& state, float label) {
  const int64_t j = task.labels[row] - task.first;
  const bool known = j >= 0 && j < task.columns;
  if (task.results.logprob) return write_results(task.results, row, state, label, known, task.scale);
  task.partials.max[row] = state.max;
  task.partials.sum[row] = state.sum;
  task.partials.label[row] = known ? label * task.scale.inv_temperature : 0.0f;
}

template <class T, int kGroup, bool kCap, bool kEntropy>
__global__ void __launch_bounds__(kThreads, 4) forward_kernel(Task task) {
  const int groups = blockDim.x / kGroup, lane = threadIdx.x % kGroup;
  const int64_t items = (task.rows.listed ? task.rows.num_listed : task.rows.num_rows) * task.splits;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * groups + threadIdx.x / kGroup; item < items; item += stride) {
    const int64_t i = task.splits == 1 ? item : item / task.splits;
    const int part = static_cast<int>(item - i * task.splits);
    const int64_t row = row_of(task.rows, i);
    if (row < 0) continue;
    if (task.rows.mask && !task.rows.mask[row]) {
      if (lane == 0 && part == 0) write_masked(task, row);
      continue;
    }
    // Asked for before the row is read: it arrives meanwhile.
    const float label = lane == 0 && task.splits == 1 ? label_value<T, kCap>(task, row) : 0.0f;
    const Part here = part_of(task.columns, task.splits, part);
    State state = fold_row<kGroup, kEntropy>(row_at<const T>(task.logits, row) + here.begin, here.size, lane,
                                             task.scale.exponent, Value<kCap>{task.scale});
    state = merge_group<kGroup, kEntropy>(state, task.scale.exponent);
    if (lane != 0) continue;
    if (task.splits == 1) {
      write_row(task, row, state, label);
    } else {
      float* scratch = task.scratch + item * 3;
      scratch[0] = state.max, scratch[1] = state.sum, scratch[2] = state.weighted;
    }
  }
}

// A thread a row: the parts of a split row become one.
template <class T, bool kCap>
__global__ void __launch_bounds__(128) combine_kernel(Task task) {
  const int64_t count = task.rows.listed ? task.rows.num_listed : task.rows.num_rows;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t row = row_of(task.rows, i);
    if (row < 0 || (task.rows.mask && !task.rows.mask[row])) continue;
    const float label = label_value<T, kCap>(task, row);
    State state{kNothing, 0.0f, 0.0f};
    for (int part = 0; part < task.splits; ++part) {
      const float* scratch = task.scratch + (i * task.splits + part) * 3;
      state = merged<true>(state, State{scratch[0], scratch[1], scratch[2]}, task.scale.exponent);
    }
    write_row(task, row, state, label);
  }
}

template <class T, bool kCap>
void launch_forward(const Task& task, void* stream) {
  const int64_t items = wanted(task.rows) * task.splits;
  const bool entropy = task.results.entropy != nullptr;
  if (task.columns <= kShort) {
    launch(entropy ? forward_kernel<T, 32, kCap, true> : forward_kernel<T, 32, kCap, false>, (items + 7) / 8, kThreads,
           stream, task);
  } else {
    launch(entropy ? forward_kernel<T, kThreads, kCap, true> : forward_kernel<T, kThreads, kCap, false>, items,
           kThreads, stream, task);
  }
  if (task.splits > 1) launch(combine_kernel<T, kCap>, (wanted(task.rows) + 127) / 128, 128, stream, task);
}

template <class T>
void launch_forward(const Task& task, void* stream) {
  task.scale.softcap > 0 ? launch_forward<T, true>(task, stream) : launch_forward<T, false>(task, stream);
}

const char* run(const Task& task, const Place& place) {
  if (wanted(task.rows) == 0) return nullptr;
  if (const char* text = enter(place)) return text;
  if (task.logits.dtype == Dtype::f32) launch_forward<float>(task, place.stream);
  if (task.logits.dtype == Dtype::bf16) launch_forward<__nv_bfloat16>(task, place.stream);
  if (task.logits.dtype == Dtype::f16) launch_forward<__half>(task, place.stream);
  return error_text(cudaGetLastError());
}

}  // namespace

const char* forward(const Grid& logits, int64_t vocab, const int64_t* labels, const Selection& rows,
                    const Numbers& numbers, const RowResults& results, const Split& split, const Place& place) {
  if (const char* text = too_long(vocab)) return text;
  return run(
      {logits, rows, labels, 0, static_cast<int>(vocab), split.splits, scale_of(numbers), results, {}, split.scratch},
      place);
}

const char* partials(const Grid& logits, int64_t vocab, const int64_t* labels, int64_t first, const Selection& rows,
                     const Numbers& numbers, const RowPartials& results, const Split& split, const Place& place) {
  if (const char* text = too_long(vocab)) return text;
  return run({logits,
              rows,
              labels,
              first,
              static_cast<int>(vocab),
              split.splits,
              scale_of(numbers),
              {},
              results,
              split.scratch},
             place);
}

}  // namespace rl_think::gpu
