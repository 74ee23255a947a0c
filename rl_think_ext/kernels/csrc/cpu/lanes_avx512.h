// Sixteen lanes: AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include "numbers.h"

namespace rl_think {
namespace {

struct Lanes {
  using F = __m512;
  static constexpr int width = 16;

  static F set(float a) { return _mm512_set1_ps(a); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where one is NaN
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F with_sign(F a, F sign) { return _mm512_or_ps(a, _mm512_and_ps(set(-0.0f), sign)); }
  static F if_below(F a, F limit, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, limit, _CMP_LT_OQ), no, yes);
  }
  // 2^t for t = d * rate + add, as p * power: t = n + j / 32 + r, the power 2^(n + j / 32) out of a table in two
  // registers, its exponent moved by n, and p = 2^r by a polynomial. (vreduceps and vscalefps would do some of it,
  // slowly.)
  static F split(F d, F rate, F add, F& power, F& t) {
    t = max(set(kLowestNormal), fma(d, rate, add));
    // The nearest multiple of 1 / 32, counted in the lowest bits: 5 of j, which the table looks at, then n.
    const F steps = _mm512_add_ps(t, set(kToSteps));
    const F r = sub(t, sub(steps, set(kToSteps)));
    const __m512i count = _mm512_castps_si512(steps);
    const F table = _mm512_permutex2var_ps(load(kSteps), count, load(kSteps + 16));
    const __m512i n = _mm512_and_si512(_mm512_slli_epi32(count, 18), _mm512_set1_epi32(static_cast<int>(0xff800000)));
    power = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(table), n));
    return fma(fma(set(kPowerOfStep[0]), r, set(kPowerOfStep[1])), r, set(1.0f));
  }
  static F exp2(F d, F rate, F add) {
    F power, t;
    const F p = split(d, rate, add, power, t);
    // What lies below the normal numbers is 0; a NaN is not.
    return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(t, set(kLowestNormal), _CMP_NEQ_UQ), p, power);
  }
  // sum + 2^t for t = d * rate; the power and t too, for whom they are of use.
  static F plus_exp2(F sum, F d, F rate, F& e, F& t) {
    F power;
    const F p = split(d, rate, set(0.0f), power, t);
    e = mul(p, power);
    return fma(p, power, sum);
  }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float highest(F a) { return _mm512_reduce_max_ps(a); }

  // 32 numbers. bf16 comes as even and odd ones: sums do not care, and store_pair puts them back.
  template <Dtype D>
  static void load_pair(const char* x, F& a, F& b) {
    if constexpr (D == Dtype::f32) {
      a = _mm512_loadu_ps(x);
      b = _mm512_loadu_ps(x + 64);
    } else {
      const __m512i halves = _mm512_loadu_si512(x);
      if constexpr (D == Dtype::bf16) {
        a = _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
        b = _mm512_castsi512_ps(_mm512_and_si512(halves, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
      } else {
        a = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
      }
    }
  }

  template <Dtype D, bool streaming>
  static void store_pair(char* x, F a, F b) {
    if constexpr (D == Dtype::f32) {
      put<streaming>(x, _mm512_castps_si512(a));
      put<streaming>(x + 64, _mm512_castps_si512(b));
    } else if constexpr (D == Dtype::bf16) {
      put<streaming>(x, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(rounded(a), 16), rounded(b)));
    } else {
      const __m256i low = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
      put<streaming>(x,
                     _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT), 1));
    }
  }

  template <Dtype D>
  static F load_in_order(const char* x) {
    if constexpr (D == Dtype::f32) return load(reinterpret_cast<const float*>(x));
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    if constexpr (D == Dtype::f16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }

  template <Dtype D>
  static void store_in_order(char* x, F a) {
    if constexpr (D == Dtype::f32) return store(reinterpret_cast<float*>(x), a);
    __m256i halves;
    if constexpr (D == Dtype::f16) {
      halves = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    } else {
      halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(a), 16));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), halves);
  }

  static void fence() { _mm_sfence(); }

 private:
  template <bool streaming>
  static void put(char* x, __m512i bits) {
    if constexpr (streaming) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(x), bits);
    } else {
      _mm512_storeu_si512(x, bits);
    }
  }

  // The bf16 is in the upper half; NaN stays NaN.
  static __m512i rounded(F a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(near, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  }
};

}  // namespace
}  // namespace rl_think
