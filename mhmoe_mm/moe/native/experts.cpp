// Experts of two products and an activation on a CPU, forward and backward: what Python calls.
//
// Rows lie sorted by expert, in blocks of an even number. Work is cut into items, a few rows or a
// few inner features of one expert each, that threads take one after the other. No item writes what
// another one writes, so answers do not depend on the threads. Products are torch's micro-kernels
// (oneDNN's); what is gathered, packed, activated and rounded around them stays in a core's cache.
// They add up in float32.
//
// Types: T is what is multiplied, float or bf16; W what weights and their gradients are kept in, T
// or float.

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <vector>

#include "backward.h"
#include "forward.h"

using namespace experts;

namespace {

enum Kind : int64_t { FLOAT = 0, MIXED = 1, BF16 = 2 };  // T, W: float; bf16, float; bf16

// Multiplies whole numbers, whose products are exact, and compares: throws where this processor has
// no products of these numbers, or others than a loop.
template <typename T>
void probe(int64_t m, int64_t n, int64_t inner) {
  const auto number = [](int64_t i) { return static_cast<float>(i * 7919 % 7 - 3); };
  std::vector<T> left(m * inner), right(inner * n);
  for (int64_t i = 0; i < m * inner; ++i) left[i] = rounded<T>(number(i));
  for (int64_t i = 0; i < inner * n; ++i) right[i] = rounded<T>(number(i + 1));
  std::vector<unit> packed(right.size() / PAIR<T>);
  std::vector<float> out(m * n);
  pack<T>(right.data(), n, inner, n, packed.data());
  multiply<T>(m, n, inner, left.data(), inner, packed.data(), out.data(), false);
  multiply<T>(m, n, inner, left.data(), inner, packed.data(), out.data(), true);
  release<T>();
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      float sum = 0;
      for (int64_t k = 0; k < inner; ++k) sum += widened(left[r * inner + k]) * widened(right[k * n + c]);
      if (out[r * n + c] != 2 * sum) throw std::runtime_error("its products are wrong");
    }
  }
}

template <typename T>
void probe_all() {
  for (const int64_t m : {8, 40}) {
    for (const int64_t n : {8, 34, 96}) {
      for (const int64_t inner : {2, 8, 32, 72}) probe<T>(m, n, inner);
    }
  }
}

template <typename T, typename W>
void run_forward(
    const Sizes& sizes, const Plan& plan, const Weights& weights, const void* token, void* pre,
    void* pre_gate, void* answer, void* out) {
  forward<T, W>(
      sizes, plan, weights, static_cast<const T*>(token), static_cast<T*>(pre),
      static_cast<T*>(pre_gate), static_cast<T*>(answer), static_cast<T*>(out));
}

template <typename T, typename W>
void run_backward(
    const Sizes& sizes, const Plan& plan, const Weights& weights, const void* token,
    const void* grad, const void* pre, const void* pre_gate, void* workspace, void* of_token,
    float* of_gate, const Weights& out) {
  backward<T, W>(
      sizes, plan, weights, static_cast<const T*>(token), static_cast<const T*>(grad),
      static_cast<const T*>(pre), static_cast<const T*>(pre_gate), static_cast<T*>(workspace),
      static_cast<T*>(of_token), of_gate, out);
}

// 0, or 1 with a sentence in `error`, which has room for so many characters.
template <typename F>
int guarded(char* error, int64_t room, const F& call) {
  try {
    call();
    return 0;
  } catch (const std::exception& problem) {
    std::snprintf(error, room, "%s", problem.what());
    return 1;
  }
}

}  // namespace

extern "C" {

// Whether this processor has products of these numbers, and right ones.
int experts_check(int64_t kind, char* error, int64_t room) {
  return guarded(error, room, [&] { kind == FLOAT ? probe_all<float>() : probe_all<bf16>(); });
}

int experts_forward(
    int64_t kind, const Sizes* sizes, const Plan* plan, const Weights* weights, const void* token,
    void* pre, void* pre_gate, void* answer, void* out, char* error, int64_t room) {
  const auto run = kind == FLOAT   ? run_forward<float, float>
                   : kind == MIXED ? run_forward<bf16, float>
                                   : run_forward<bf16, bf16>;
  return guarded(
      error, room, [&] { run(*sizes, *plan, *weights, token, pre, pre_gate, answer, out); });
}

int experts_backward(
    int64_t kind, const Sizes* sizes, const Plan* plan, const Weights* weights, const void* token,
    const void* grad, const void* pre, const void* pre_gate, void* workspace, void* of_token,
    float* of_gate, const Weights* out, char* error, int64_t room) {
  const auto run = kind == FLOAT   ? run_backward<float, float>
                   : kind == MIXED ? run_backward<bf16, float>
                                   : run_backward<bf16, bf16>;
  return guarded(error, room, [&] {
    run(*sizes, *plan, *weights, token, grad, pre, pre_gate, workspace, of_token, of_gate, *out);
  });
}

}  // extern "C"
