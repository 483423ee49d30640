// GELU and gated SiLU of rows, and what their backward needs.
#pragma once

#include <cmath>

#include "numbers.h"

namespace experts {

// e^x for x of 0 or less, to 2e-7 of it; below -87 that of -87.
inline float exp_negative(float x) {
  const float z = x < -87.0f ? -87.0f : x;
  const float n = std::nearbyint(z * 1.44269504f);
  // ln 2 in two parts, the first of few digits, so that n times it is exact.
  const float r = (z - n * 0.693359375f) + n * 2.12194440e-4f;
  float series = 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  return series * of_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

struct Normal {
  float below;    // how much of the standard normal distribution lies below x
  float density;  // its density there
};

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: `below` to 8e-8.
inline Normal normal(float x) {
  const float magnitude = std::fabs(x) * 0.70710678f;
  const float bell = exp_negative(-magnitude * magnitude);
  const float t = 1.0f / (1.0f + 0.3275911f * magnitude);
  float series = 1.061405429f;
  series = series * t - 1.453152027f;
  series = series * t + 1.421413741f;
  series = series * t - 0.284496736f;
  series = series * t + 0.254829592f;
  const float tail = 0.5f * series * t * bell;
  return {x < 0 ? tail : 1.0f - tail, bell * 0.39894228f};
}

inline float sigmoid(float x) {
  const float small = exp_negative(-std::fabs(x));
  const float one = 1.0f / (1.0f + small);
  return x < 0 ? small * one : one;
}

template <typename T>
void gelu(const T* __restrict pre, int64_t count, T* __restrict hidden) {
  for (int64_t c = 0; c < count; ++c) {
    const float x = widened(pre[c]);
    hidden[c] = rounded<T>(x * normal(x).below);
  }
}

template <typename T>
void gated_silu(
    const T* __restrict pre, const T* __restrict pre_gate, int64_t count, T* __restrict hidden) {
  for (int64_t c = 0; c < count; ++c) {
    const float g = widened(pre_gate[c]);
    hidden[c] = rounded<T>(widened(pre[c]) * g * sigmoid(g));
  }
}

// From what is before the activation and `grad`, the gradient of the row's answer times W_out^T:
// `hidden`, as the forward had it, and the gradient of `pre`, in which the row's gate counts.
// Returns sum(hidden * grad): the gradient of the gate.
template <typename T>
float gelu_backward(
    const T* __restrict pre, const float* __restrict grad, float gate, int64_t count,
    T* __restrict hidden, T* __restrict grad_pre) {
  float share = 0;
#pragma omp simd reduction(+ : share)
  for (int64_t c = 0; c < count; ++c) {
    const float x = widened(pre[c]);
    const Normal at = normal(x);
    const float answer = x * at.below;
    share += answer * grad[c];
    hidden[c] = rounded<T>(answer);
    grad_pre[c] = rounded<T>(gate * grad[c] * (at.below + x * at.density));
  }
  return share;
}

template <typename T>
float gated_silu_backward(
    const T* __restrict pre, const T* __restrict pre_gate, const float* __restrict grad, float gate,
    int64_t count, T* __restrict hidden, T* __restrict grad_pre, T* __restrict grad_gate) {
  float share = 0;
#pragma omp simd reduction(+ : share)
  for (int64_t c = 0; c < count; ++c) {
    const float x = widened(pre[c]), g = widened(pre_gate[c]), s = sigmoid(g);
    const float answer = x * g * s;
    share += answer * grad[c];
    hidden[c] = rounded<T>(answer);
    grad_pre[c] = rounded<T>(gate * grad[c] * g * s);
    grad_gate[c] = rounded<T>(gate * grad[c] * x * s * (1.0f + g * (1.0f - s)));
  }
  return share;
}

}  // namespace experts
