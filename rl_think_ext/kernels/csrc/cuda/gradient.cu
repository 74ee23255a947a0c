// Gradient with respect to logits: g / T * (1[j == label] - p_j) * slope of the cap, p from the row's max and log-sum.
// From rows of any dtype (out of place or in place), and from chunks of float32 logits into what the next matmul takes.
#include "row.cuh"

namespace rl_think::gpu {
namespace {

constexpr int kBlock = 256;
constexpr int kShort = 4096;
constexpr int kLoads = 4;
constexpr int kPart = 32768;  // elements of a row for one block

struct Task {
  Grid in, out;
  Selection rows;
  const int64_t* labels;
  int64_t first;
  int columns, splits;
  Scale scale;
  const float *grad, *max, *log_sum, *bias;
};

// The gradient of one row, element by element.
template <bool kCap, bool kBias>
struct Slope {
  Scale scale;
  float grad, factor, max;  // g / T; g / T / sum of e
  const float* bias;
  int label;

  __device__ __forceinline__ Slope(const Task& task, int64_t row, int begin)
      : scale(task.scale),
        grad(task.grad[row] * task.scale.inv_temperature),
        max(task.max[row]),
        bias(kBias ? task.bias + task.first + begin : nullptr) {
    factor = -grad * expf(-task.log_sum[row]);
    const int64_t j = task.labels[row] - task.first - begin;
    label = j >= 0 && j < task.columns ? static_cast<int>(j) : -1;
  }
  __device__ __forceinline__ float at(float x, int j, float own) const {
    if (kBias) x += bias[j];
    const float e = exp2_flushed((capped<kCap>(x, scale) - max) * scale.exponent);
    const float d = fmaf(factor, e, own);
    return kCap ? d * cap_slope(x, scale) : d;
  }
  __device__ __forceinline__ float one(float x, int j) const { return at(x, j, j == label ? grad : 0.0f); }
  template <int kCount>
  __device__ __forceinline__ void many(float* v, int j) const {
    if (static_cast<unsigned>(label - j) < static_cast<unsigned>(kCount)) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[k] = one(v[k], j + k);
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[k] = at(v[k], j + k, 0.0f);
    }
  }
};

// In and out at different distances from a 16-byte boundary: an element a thread, still whole lines of memory a warp.
template <int kGroup, class In, class Out, class Row>
__device__ void write_scalars(const In* in, Out* out, int size, int lane, const Row& row) {
  for (int64_t i = lane; i < size; i += kLoads * kGroup) {
    float v[kLoads];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int64_t j = i + load * kGroup;
      v[load] = j < size ? Packed<In>::widen(in[j]) : 0.0f;
    }
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int64_t j = i + load * kGroup;
      if (j < size) out[j] = Packed<Out>::narrow(row.one(v[load], static_cast<int>(j)));
    }
  }
}

// Every element is read by the thread that writes it, before it does: `out` may be `in`.
template <int kGroup, class In, class Out, class Row>
__device__ __forceinline__ void write_gradient(const In* in, Out* out, int size, int lane, const Row& row) {
  constexpr int kSize = Packed<Out>::size, kParts = kSize / Packed<In>::size;
  const Ragged<Out> ragged(out, size);
  if (reinterpret_cast<uintptr_t>(in + ragged.head) % 16 != 0) return write_scalars<kGroup>(in, out, size, lane, row);
  const int single = ragged.single(lane);
  if (single >= 0) out[single] = Packed<Out>::narrow(row.one(Packed<In>::widen(in[single]), single));
  const uint4* from = reinterpret_cast<const uint4*>(in + ragged.head);
  uint4* to = reinterpret_cast<uint4*>(out + ragged.head);
  constexpr int kAtOnce = kLoads / kParts;
  for (int i = lane; i < ragged.vectors; i += kAtOnce * kGroup) {
    uint4 raw[kAtOnce][kParts];
#pragma unroll
    for (int load = 0; load < kAtOnce; ++load) {
      const int at = i + load * kGroup;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        raw[load][part] =
            at < ragged.vectors ? __ldcs(from + static_cast<int64_t>(at) * kParts + part) : make_uint4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int load = 0; load < kAtOnce; ++load) {
      const int at = i + load * kGroup;
      if (at >= ragged.vectors) break;
      float v[kSize];
#pragma unroll
      for (int part = 0; part < kParts; ++part) Packed<In>::unpack(raw[load][part], v + part * Packed<In>::size);
      row.template many<kSize>(v, ragged.head + at * kSize);
      __stcs(to + at, Packed<Out>::pack(v));
    }
  }
}

template <int kGroup, class Out>
__device__ void write_zeros(Out* out, int size, int lane) {
  const Ragged<Out> ragged(out, size);
  const int single = ragged.single(lane);
  if (single >= 0) out[single] = Packed<Out>::narrow(0.0f);
  uint4* to = reinterpret_cast<uint4*>(out + ragged.head);
  for (int i = lane; i < ragged.vectors; i += kGroup) __stcs(to + i, make_uint4(0, 0, 0, 0));
}

template <class In, class Out, int kGroup, bool kCap, bool kBias>
__global__ void __launch_bounds__(kBlock, 4) gradient_kernel(Task task) {
  const int groups = blockDim.x / kGroup, lane = threadIdx.x % kGroup;
  const int64_t items = (task.rows.listed ? task.rows.num_listed : task.rows.num_rows) * task.splits;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * groups + threadIdx.x / kGroup; item < items; item += stride) {
    const int64_t i = task.splits == 1 ? item : item / task.splits;
    const int64_t row = row_of(task.rows, i);
    if (row < 0) continue;
    const Part here = part_of(task.columns, task.splits, static_cast<int>(item - i * task.splits));
    Out* out = row_at<Out>(task.out, row) + here.begin;
    if (task.rows.mask && !task.rows.mask[row]) {
      write_zeros<kGroup>(out, here.size, lane);
    } else {
      write_gradient<kGroup>(row_at<const In>(task.in, row) + here.begin, out, here.size, lane,
                             Slope<kCap, kBias>(task, row, here.begin));
    }
  }
}

template <class In, class Out, bool kCap, bool kBias>
void launch_gradient(Task task, void* stream) {
  const int64_t count = wanted(task.rows);
  if (task.columns <= kShort) {
    launch(gradient_kernel<In, Out, 32, kCap, kBias>, (count + kBlock / 32 - 1) / (kBlock / 32), kBlock, stream, task);
  } else {
    task.splits = (task.columns - 1) / kPart + 1;
    launch(gradient_kernel<In, Out, kBlock, kCap, kBias>, count * task.splits, kBlock, stream, task);
  }
}

template <class In, class Out, bool kBias = false>
void launch_gradient(const Task& task, void* stream) {
  task.scale.softcap > 0 ? launch_gradient<In, Out, true, kBias>(task, stream)
                         : launch_gradient<In, Out, false, kBias>(task, stream);
}

template <class Out>
void launch_chunk(const Task& task, void* stream) {
  task.bias ? launch_gradient<float, Out, true>(task, stream) : launch_gradient<float, Out>(task, stream);
}

}  // namespace

const char* backward(const Grid& logits, const Grid& out, int64_t vocab, const int64_t* labels, int64_t first,
                     const Selection& rows, const Numbers& numbers, const float* grad, const float* max,
                     const float* log_sum, const Place& place) {
  if (wanted(rows) == 0) return nullptr;
  if (const char* text = too_long(vocab)) return text;
  if (const char* text = enter(place)) return text;
  const Task task{logits, out, rows,    labels, first, static_cast<int>(vocab), 1, scale_of(numbers),
                  grad,   max, log_sum, nullptr};
  if (logits.dtype == Dtype::f32) launch_gradient<float, float>(task, place.stream);
  if (logits.dtype == Dtype::bf16) launch_gradient<__nv_bfloat16, __nv_bfloat16>(task, place.stream);
  if (logits.dtype == Dtype::f16) launch_gradient<__half, __half>(task, place.stream);
  return error_text(cudaGetLastError());
}

const char* chunk_gradient(const Chunk& chunk, void* out, Dtype dtype, int64_t out_stride, const Numbers& numbers,
                           const float* grad, const float* max, const float* log_sum, const Place& place) {
  if (chunk.num_rows == 0 || chunk.columns == 0) return nullptr;
  if (const char* text = too_long(chunk.columns)) return text;
  if (const char* text = enter(place)) return text;
  const Grid from{const_cast<float*>(chunk.logits), Dtype::f32, 1, chunk.stride, 0}, to{out, dtype, 1, out_stride, 0};
  const Task task{from,
                  to,
                  {chunk.num_rows, nullptr, 0, nullptr},
                  chunk.labels,
                  chunk.first,
                  static_cast<int>(chunk.columns),
                  1,
                  scale_of(numbers),
                  grad,
                  max,
                  log_sum,
                  chunk.bias};
  if (dtype == Dtype::f32) launch_chunk<float>(task, place.stream);
  if (dtype == Dtype::bf16) launch_chunk<__nv_bfloat16>(task, place.stream);
  if (dtype == Dtype::f16) launch_chunk<__half>(task, place.stream);
  return error_text(cudaGetLastError());
}

}  // namespace rl_think::gpu
