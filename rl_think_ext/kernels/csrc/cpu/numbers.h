// One number at a time: the three dtypes and what the vector code shares with them.
#pragma once

#include <cstdint>
#include <cstring>

#include "../api.h"

namespace rl_think {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

// 2^t = 2^(t - n) * 2^n for the whole number n nearest to t. Adding this constant rounds t and leaves n + 127 in the
// lowest bits, so that shifting them into the exponent's place gives 2^n, and 0 for -127.
constexpr float kToInteger = 0x1.8p23f + 127.0f;
// Below this 2^t is 0; it also keeps -inf out of the arithmetic.
constexpr float kLowest = -127.0f;
// 2^r on [-1/2, 1/2], from the highest power down: of all polynomials of degree 6 the one with the least relative error
// (2e-9).
constexpr float kPowerAround0[] = {
    0x1.41d334p-13f, 0x1.5f456ap-10f, 0x1.3b2dbcp-7f, 0x1.c6aed4p-5f, 0x1.ebfbdap-3f, 0x1.62e430p-1f, 1.0f};
// The same on [-1/64, 1/64] with degree 2 (5e-8), but for its last coefficient, 1; and 2^(j / 32).
constexpr float kPowerOfStep[] = {0x1.ebfc1p-3f, 0x1.62e584p-1f};
constexpr float kToSteps = 0x1.8p18f;
constexpr float kLowestNormal = -126.0f;
constexpr float kSteps[] = {
    0x1.000000p+0f, 0x1.059b0ep+0f, 0x1.0b5586p+0f, 0x1.11301ep+0f, 0x1.172b84p+0f, 0x1.1d4874p+0f, 0x1.2387a6p+0f,
    0x1.29e9e0p+0f, 0x1.306fe0p+0f, 0x1.371a74p+0f, 0x1.3dea64p+0f, 0x1.44e086p+0f, 0x1.4bfdaep+0f, 0x1.5342b6p+0f,
    0x1.5ab07ep+0f, 0x1.6247ecp+0f, 0x1.6a09e6p+0f, 0x1.71f75ep+0f, 0x1.7a1148p+0f, 0x1.82589ap+0f, 0x1.8ace54p+0f,
    0x1.93737cp+0f, 0x1.9c4918p+0f, 0x1.a5503cp+0f, 0x1.ae89fap+0f, 0x1.b7f770p+0f, 0x1.c199bep+0f, 0x1.cb720ep+0f,
    0x1.d5818ep+0f, 0x1.dfc974p+0f, 0x1.ea4afap+0f, 0x1.f50766p+0f};

template <Dtype D>
constexpr int64_t item_size = D == Dtype::f32 ? 4 : 2;

// Each instruction set compiles its own copy of what follows, and of everything in the .inl files: a shared inline
// function could be the one with instructions that this machine lacks. So no std:: template either.
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Lanes, int size>
inline typename Lanes::F horner(typename Lanes::F x, const float (&coefficients)[size]) {
  typename Lanes::F p = Lanes::set(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i < size; ++i) p = Lanes::fma(p, x, Lanes::set(coefficients[i]));
  return p;
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline uint16_t half_at(const char* x) {
  uint16_t bits;
  std::memcpy(&bits, x, 2);
  return bits;
}

inline float from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // A subnormal is a multiple of 2^-24; no step here meets a subnormal float, which some machines are told to drop.
  if (rest < 0x400) return from_bits(sign | to_bits(static_cast<float>(rest) * 0x1p-24f));
  return from_bits(sign | ((rest << 13) + 0x38000000));
}

inline uint16_t to_f16(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (rest >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more round to infinity
  if (rest < 0x38800000) {
    // Below 2^-14 the addition of 0.5 rounds to multiples of 2^-24.
    return static_cast<uint16_t>(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}

inline float from_bf16(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

inline uint16_t to_bf16(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <Dtype D>
inline float read(const char* x) {
  if constexpr (D == Dtype::f32) {
    float value;
    std::memcpy(&value, x, 4);
    return value;
  } else if constexpr (D == Dtype::bf16) {
    return from_bf16(half_at(x));
  } else {
    return from_f16(half_at(x));
  }
}

template <Dtype D>
inline void write(char* x, float value) {
  if constexpr (D == Dtype::f32) {
    std::memcpy(x, &value, 4);
  } else {
    const uint16_t half = D == Dtype::bf16 ? to_bf16(value) : to_f16(value);
    std::memcpy(x, &half, 2);
  }
}

inline float read(Dtype dtype, const char* x) {
  return dtype == Dtype::f32 ? read<Dtype::f32>(x) : dtype == Dtype::bf16 ? read<Dtype::bf16>(x) : read<Dtype::f16>(x);
}

inline void write(Dtype dtype, char* x, float value) {
  if (dtype == Dtype::f32) return write<Dtype::f32>(x, value);
  if (dtype == Dtype::bf16) return write<Dtype::bf16>(x, value);
  write<Dtype::f16>(x, value);
}

}  // namespace
}  // namespace rl_think
