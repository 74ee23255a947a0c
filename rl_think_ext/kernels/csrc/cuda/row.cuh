// What every kernel shares: 16 bytes of a row as floats, the running state of a row, and its merge over threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cmath>

#include "launch.h"

namespace rl_think::gpu {

constexpr int kThreads = 256;  // of every block that folds
constexpr int kSlots = 8;      // 16-byte vectors on their way for each of them: 32 KiB a block
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kNothing = -INFINITY;
// 2^-150 is 0 in float32: a finite stand-in for -inf, so that 0 * exponent stays 0.
constexpr float kLowest = -150.0f;

// 2^x, 2 ulp, results under 2^-126 flushed: beside a sum of at least 1 they are nothing.
__device__ __forceinline__ float exp2_flushed(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return x < -126.0f ? 0.0f : exp2f(x);
#endif
}

template <class T>
struct Packed;

template <>
struct Packed<float> {
  static constexpr int size = 4;
  __device__ static void unpack(const uint4& raw, float* v) {
    v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y);
    v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
  }
  __device__ static uint4 pack(const float* v) {
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
  }
  __device__ static float widen(float x) { return x; }
  __device__ static float narrow(float x) { return x; }
};

template <>
struct Packed<__nv_bfloat16> {
  static constexpr int size = 8;
  __device__ static void unpack(const uint4& raw, float* v) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  __device__ static unsigned pair(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return static_cast<unsigned>(__bfloat16_as_ushort(both.x)) | static_cast<unsigned>(__bfloat16_as_ushort(both.y))
                                                                     << 16;
  }
  __device__ static uint4 pack(const float* v) {
    return make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7]));
  }
  __device__ static float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  __device__ static __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
};

template <>
struct Packed<__half> {
  static constexpr int size = 8;
  __device__ static void unpack(const uint4& raw, float* v) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] & 0xffffu)));
      v[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] >> 16)));
    }
  }
  __device__ static unsigned pair(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return static_cast<unsigned>(__half_as_ushort(both.x)) | static_cast<unsigned>(__half_as_ushort(both.y)) << 16;
  }
  __device__ static uint4 pack(const float* v) {
    return make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7]));
  }
  __device__ static float widen(__half x) { return __half2float(x); }
  __device__ static __half narrow(float x) { return __float2half_rn(x); }
};

// Temperature and cap as the kernels use them; exponents are in base 2.
struct Scale {
  float exponent;  // log2(e) / temperature
  float inv_temperature, softcap, inv_softcap;
};

inline Scale scale_of(const Numbers& numbers) {
  return {static_cast<float>(1.4426950408889634074 / numbers.temperature),
          static_cast<float>(1.0 / numbers.temperature), static_cast<float>(numbers.softcap),
          numbers.softcap > 0 ? static_cast<float>(1.0 / numbers.softcap) : 0.0f};
}

template <bool kCap>
__device__ __forceinline__ float capped(float x, const Scale& scale) {
  return kCap ? scale.softcap * tanhf(x * scale.inv_softcap) : x;
}

// 1 - tanh(y)^2 without its cancellation: 4 q / (1 + q)^2 with q = exp(-2 |y|).
__device__ __forceinline__ float cap_slope(float x, const Scale& scale) {
  const float q = exp2_flushed(-2.0f * kLog2e * fabsf(x * scale.inv_softcap));
  return __fdividef(4.0f * q, (1.0f + q) * (1.0f + q));
}

// Max of v, sum of e = 2^u with u = (v - max) * exponent, and sum of e * u.
struct State {
  float max, sum, weighted;
};

// NaN stays out of `max` and stays in `sum`; +inf turns the sum into NaN; a row of -inf has sum 0.
template <bool kEntropy>
__device__ __forceinline__ void raise_max(State& state, float top, float exponent) {
  const float step = (state.max - top) * exponent;
  const float factor = exp2_flushed(step);
  if (kEntropy) state.weighted = (state.weighted + state.sum * fmaxf(step, kLowest)) * factor;
  state.sum *= factor;
  state.max = top;
}

template <bool kEntropy, int kCount>
__device__ __forceinline__ void fold_values(State& state, const float (&v)[kCount], float exponent) {
  float top = v[0];
#pragma unroll
  for (int k = 1; k < kCount; ++k) top = fmaxf(top, v[k]);
  if (top > state.max) raise_max<kEntropy>(state, top, exponent);
  const float base = state.max == kNothing ? 0.0f : state.max;
  // Four short sums a block: the rounding of a long chain, and its waiting, stay out of the row's sum.
  constexpr int kChains = kCount < 4 ? kCount : 4;
  float sum[kChains] = {}, weighted[kChains] = {};
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float u = (v[k] - base) * exponent;
    const float e = exp2_flushed(u);
    sum[k % kChains] += e;
    if (kEntropy) weighted[k % kChains] = fmaf(e, fmaxf(u, kLowest), weighted[k % kChains]);
  }
#pragma unroll
  for (int k = 1; k < kChains; ++k) sum[0] += sum[k], weighted[0] += weighted[k];
  state.sum += sum[0];
  if (kEntropy) state.weighted += weighted[0];
}

template <bool kEntropy>
__device__ __forceinline__ State merged(const State& a, const State& b, float exponent) {
  const float top = fmaxf(a.max, b.max);
  const float base = top == kNothing ? 0.0f : top;
  const float step_a = (a.max - base) * exponent, step_b = (b.max - base) * exponent;
  const float factor_a = exp2_flushed(step_a), factor_b = exp2_flushed(step_b);
  State both{top, a.sum * factor_a + b.sum * factor_b, 0.0f};
  if (kEntropy) {
    both.weighted = (a.weighted + a.sum * fmaxf(step_a, kLowest)) * factor_a +
                    (b.weighted + b.sum * fmaxf(step_b, kLowest)) * factor_b;
  }
  return both;
}

template <bool kEntropy>
__device__ __forceinline__ State merge_warp(State state, float exponent) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    State other{__shfl_xor_sync(0xffffffffu, state.max, distance), __shfl_xor_sync(0xffffffffu, state.sum, distance),
                0.0f};
    if (kEntropy) other.weighted = __shfl_xor_sync(0xffffffffu, state.weighted, distance);
    state = merged<kEntropy>(state, other, exponent);
  }
  return state;
}

// The state of a group of threads, right in its first warp. A group is a warp or the whole block: every thread of it
// must come here.
template <int kGroup, bool kEntropy>
__device__ __forceinline__ State merge_group(State state, float exponent) {
  state = merge_warp<kEntropy>(state, exponent);
  if constexpr (kGroup > 32) {
    constexpr int kWarps = kGroup / 32;
    __shared__ float shared[3][kWarps];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();  // the first warp may still read what the row before left here
    if (lane == 0) shared[0][warp] = state.max, shared[1][warp] = state.sum, shared[2][warp] = state.weighted;
    __syncthreads();
    if (warp == 0) {
      state = lane < kWarps ? State{shared[0][lane], shared[1][lane], shared[2][lane]} : State{kNothing, 0.0f, 0.0f};
      state = merge_warp<kEntropy>(state, exponent);
    }
  }
  return state;
}

// [0, size) of a row: whole 16-byte vectors between a head and a tail of less than one each, an element a thread.
template <class T>
struct Ragged {
  int head, vectors, tail, size;
  __device__ Ragged(const T* data, int num) : size(num) {
    const int off = static_cast<int>(reinterpret_cast<uintptr_t>(data) % 16);
    head = min(size, (16 - off) % 16 / static_cast<int>(sizeof(T)));
    vectors = (size - head) / Packed<T>::size;
    tail = head + vectors * Packed<T>::size;
  }
  // The element of thread `lane` that no vector holds, or -1.
  __device__ int single(int lane) const {
    const int at = lane < head ? lane : tail + lane - head;
    return at < size ? at : -1;
  }
};

// Folds loaded vectors, kStride apart from vector i on; where kAll is false, those from `count` on are not there.
template <class T, int kStride, bool kAll, bool kEntropy, class Value>
__device__ __forceinline__ void fold_vectors(State& state, const uint4 (&raw)[16 / Packed<T>::size], int i, int count,
                                             int head, float exponent, const Value& value) {
  constexpr int kSize = Packed<T>::size;
  float v[16];
#pragma unroll
  for (int part = 0; part < 16 / kSize; ++part) {
    const int at = i + part * kStride;
    float* values = v + part * kSize;
    Packed<T>::unpack(raw[part], values);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      values[k] = kAll || at < count ? value(values[k], head + at * kSize + k) : kNothing;
    }
  }
  fold_values<kEntropy>(state, v, exponent);
}

// Folds [0, size) of a row; value(x, j) is v of element j. Each thread has kSlots vectors on their way into shared
// memory that is its own: that takes no registers, and the compiler cannot put the loads off until they are waited for.
template <int kGroup, bool kEntropy, class T, class Value>
__device__ __forceinline__ State fold_row(const T* data, int size, int lane, float exponent, const Value& value) {
  constexpr int kAtOnce = 16 / Packed<T>::size, kStages = kSlots / kAtOnce, kStep = kAtOnce * kGroup;
  static_assert(kSlots % kAtOnce == 0 && kStages > 1);
  __shared__ uint4 slots[kSlots][kThreads];
  const Ragged<T> ragged(data, size);
  const int single = ragged.single(lane), count = ragged.vectors;
  const uint4* vectors = reinterpret_cast<const uint4*>(data + ragged.head);
  // A stage is committed even where it is empty: how many are still on their way stays countable.
  const auto fetch = [&](int stage, int i) {
#pragma unroll
    for (int part = 0; part < kAtOnce; ++part) {
      const int at = i + part * kGroup;
      if (at < count) __pipeline_memcpy_async(&slots[stage * kAtOnce + part][threadIdx.x], vectors + at, 16);
    }
    __pipeline_commit();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) fetch(stage, lane + stage * kStep);
  const float edge[1] = {single < 0 ? kNothing : value(Packed<T>::widen(data[single]), single)};
  State state{kNothing, 0.0f, 0.0f};
  int stage = 0;
  for (int i = lane; i < count; i += kStep) {
    __pipeline_wait_prior(kStages - 1);
    uint4 raw[kAtOnce];
#pragma unroll
    for (int part = 0; part < kAtOnce; ++part) raw[part] = slots[stage * kAtOnce + part][threadIdx.x];
    fetch(stage, i + kStages * kStep);
    if (i + (kAtOnce - 1) * kGroup < count) {
      fold_vectors<T, kGroup, true, kEntropy>(state, raw, i, count, ragged.head, exponent, value);
    } else {
      fold_vectors<T, kGroup, false, kEntropy>(state, raw, i, count, ragged.head, exponent, value);
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  fold_values<kEntropy>(state, edge, exponent);
  return state;
}

// Log-prob, entropy, max and log-sum of one row. A label that is nowhere: NaN for all of it, so also for its gradient.
__device__ __forceinline__ void write_results(const RowResults& results, int64_t row, const State& state, float label,
                                              bool known, const Scale& scale) {
  const float log_sum = known ? logf(state.sum) : NAN;
  const float distance = state.max == kNothing && state.sum == 0.0f ? kNothing : label - state.max;
  results.logprob[row] =
      distance == kNothing && log_sum == kNothing ? kNothing : distance * scale.inv_temperature - log_sum;
  if (results.max) results.max[row] = state.max;
  if (results.log_sum) results.log_sum[row] = log_sum;
  if (results.entropy) results.entropy[row] = log_sum - kLn2 * state.weighted / state.sum;
}

// Row r of a grid, counted in 64 bits.
template <class T>
__device__ __forceinline__ T* row_at(const Grid& grid, int64_t r) {
  const int64_t offset =
      grid.inner == 1 ? r * grid.outer_stride : r / grid.inner * grid.outer_stride + r % grid.inner * grid.inner_stride;
  return static_cast<T*>(grid.base) + offset;
}

inline int64_t wanted(const Selection& rows) { return rows.listed ? rows.num_listed : rows.num_rows; }

// One of `splits` parts that cover a row: equally long (but the last ones), a multiple of 16 bytes in any dtype.
struct Part {
  int begin, size;
};

__device__ __forceinline__ Part part_of(int columns, int splits, int part) {
  if (splits == 1) return {0, columns};
  const int64_t length = (static_cast<int64_t>(columns) + splits - 1) / splits + 7 & ~int64_t{7};
  const int64_t begin = min(part * length, static_cast<int64_t>(columns));
  return {static_cast<int>(begin), static_cast<int>(min(length, columns - begin))};
}

// The row of item i of a selection, or -1: not a row. Whether it is masked is left to the caller.
__device__ __forceinline__ int64_t row_of(const Selection& rows, int64_t i) {
  const int64_t row = rows.listed ? rows.listed[i] : i;
  return row >= 0 && row < rows.num_rows ? row : -1;
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream, Parameters... arguments) {
  // Kernels step over what a grid cannot hold.
  const unsigned grid = static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff);
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
}

inline const char* error_text(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// Columns are counted in 32 bits; rows and offsets in 64.
inline const char* too_long(int64_t columns) {
  return columns > 0x7ffff000 ? "a row of 2^31 elements is too long for the CUDA kernels" : nullptr;
}

// The current device of the runtime linked in here is made the tensors', whatever that of torch's runtime is.
inline const char* enter(const Place& place) { return error_text(cudaSetDevice(place.device)); }

}  // namespace rl_think::gpu
