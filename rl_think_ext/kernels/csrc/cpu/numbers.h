// One number at a time: the three dtypes and what the vector code shares with them.
#pragma once

#include <cstdint>
#include <cstring>

#include "../api.h"

namespace rl_think {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

template <Dtype D>
constexpr int64_t item_size = D == Dtype::f32 ? 4 : 2;

// Each instruction set compiles its own copy of what follows, and of everything in the .inl files: a shared inline
// function could be the one with instructions that this machine lacks. So no std:: template either.
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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
  // Shifted into place the exponent is 112 too small; the product also makes subnormals normal.
  return from_bits(sign | to_bits(from_bits(rest << 13) * 0x1p112f));
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
