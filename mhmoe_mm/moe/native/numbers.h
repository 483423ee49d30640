// float32, and bfloat16 as integers that hold its bits. Loops over these functions become vector
// code.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace experts {

using bf16 = uint16_t;  // the upper half of a float32

inline float of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float widened(float value) { return value; }
inline float widened(bf16 value) { return of_bits(static_cast<uint32_t>(value) << 16); }

// To the nearest, ties to even; what is not a number stays so.
template <typename T>
T rounded(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    const uint32_t bits = bits_of(value);
    const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<T>(value == value ? nearest : (bits >> 16) | 0x40u);
  }
}

template <typename T, typename From>
T converted(From value) {
  if constexpr (std::is_same_v<T, From>) {
    return value;
  } else {
    return rounded<T>(widened(value));
  }
}

template <typename T, typename From>
void round_all(const From* __restrict from, int64_t count, T* __restrict to) {
  for (int64_t c = 0; c < count; ++c) to[c] = rounded<T>(static_cast<float>(from[c]));
}

// to = from + bias, of which there may be none
template <typename T, typename W>
void shift_and_round(
    const float* __restrict from, const W* __restrict bias, int64_t count, T* __restrict to) {
  if (bias == nullptr) return round_all(from, count, to);
  for (int64_t c = 0; c < count; ++c) to[c] = rounded<T>(from[c] + widened(bias[c]));
}

// to += factor * from
template <typename T>
void add_scaled(const T* __restrict from, float factor, int64_t count, float* __restrict to) {
  for (int64_t c = 0; c < count; ++c) to[c] += factor * widened(from[c]);
}

// to = factor * from
template <typename T>
void scale(const T* __restrict from, float factor, int64_t count, T* __restrict to) {
  for (int64_t c = 0; c < count; ++c) to[c] = rounded<T>(factor * widened(from[c]));
}

template <typename T, typename W>
float dot(const T* __restrict one, const W* __restrict other, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) sum += widened(one[c]) * widened(other[c]);
  return sum;
}

}  // namespace experts
