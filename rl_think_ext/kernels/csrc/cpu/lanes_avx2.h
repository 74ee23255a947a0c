// Eight lanes: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "numbers.h"

namespace rl_think {
namespace {

struct Lanes {
  using F = __m256;
  static constexpr int width = 8;

  static F set(float a) { return _mm256_set1_ps(a); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }  // b where one is NaN
  static F abs(F a) { return _mm256_andnot_ps(set(-0.0f), a); }
  static F with_sign(F a, F sign) { return _mm256_or_ps(a, _mm256_and_ps(set(-0.0f), sign)); }
  static F if_below(F a, F limit, F yes, F no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, limit, _CMP_LT_OQ));
  }
  // 2^(d * rate + add) as p * power: see numbers.h.
  static F split(F d, F rate, F add, F& power, F& t) {
    t = max(set(kLowest), fma(d, rate, add));
    const F shifted = _mm256_add_ps(t, set(kToInteger));
    power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23));
    return horner<Lanes>(sub(t, sub(shifted, set(kToInteger))), kPowerAround0);
  }
  static F exp2(F d, F rate, F add) {
    F power, t;
    const F p = split(d, rate, add, power, t);
    return mul(p, power);
  }
  // sum + 2^t for t = d * rate; the power and t too, for whom they are of use.
  static F plus_exp2(F sum, F d, F rate, F& e, F& t) {
    F power;
    const F p = split(d, rate, set(0.0f), power, t);
    e = mul(p, power);
    return fma(p, power, sum);
  }
  static float sum(F a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float highest(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  // 16 numbers. bf16 comes as even and odd ones: sums do not care, and store_pair puts them back.
  template <Dtype D>
  static void load_pair(const char* x, F& a, F& b) {
    if constexpr (D == Dtype::f32) {
      a = _mm256_loadu_ps(reinterpret_cast<const float*>(x));
      b = _mm256_loadu_ps(reinterpret_cast<const float*>(x) + 8);
    } else {
      const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
      if constexpr (D == Dtype::bf16) {
        a = _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
        b = _mm256_castsi256_ps(_mm256_and_si256(halves, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
      } else {
        a = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        b = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
      }
    }
  }

  template <Dtype D, bool streaming>
  static void store_pair(char* x, F a, F b) {
    if constexpr (D == Dtype::f32) {
      put<streaming>(x, _mm256_castps_si256(a));
      put<streaming>(x + 32, _mm256_castps_si256(b));
    } else if constexpr (D == Dtype::bf16) {
      put<streaming>(x, _mm256_blend_epi16(_mm256_srli_epi32(rounded(a), 16), rounded(b), 0xaa));
    } else {
      put<streaming>(x, _mm256_set_m128i(_mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT),
                                         _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)));
    }
  }

  template <Dtype D>
  static F load_in_order(const char* x) {
    if constexpr (D == Dtype::f32) return load(reinterpret_cast<const float*>(x));
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    if constexpr (D == Dtype::f16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }

  template <Dtype D>
  static void store_in_order(char* x, F a) {
    if constexpr (D == Dtype::f32) return store(reinterpret_cast<float*>(x), a);
    __m128i halves;
    if constexpr (D == Dtype::f16) {
      halves = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    } else {
      const __m256i upper = _mm256_srli_epi32(rounded(a), 16);
      halves = _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(x), halves);
  }

  static void fence() { _mm_sfence(); }

 private:
  template <bool streaming>
  static void put(char* x, __m256i bits) {
    if constexpr (streaming) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(x), bits);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), bits);
    }
  }

  // The bf16 is in the upper half; NaN stays NaN.
  static __m256i rounded(F a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_or_si256(near, _mm256_and_si256(nan, _mm256_set1_epi32(0x7fc00000)));
  }
};

}  // namespace
}  // namespace rl_think
