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

#include "backward.h"
#include "forward.h"

using namespace experts;

namespace {

enum Kind : int64_t { FLOAT = 0, MIXED = 1, BF16 = 2 };  // T, W: float; bf16, float; bf16

template <typename T>
void probe() {
  alignas(64) T left[64] = {};
  alignas(64) unit right[64] = {};
  alignas(64) float out[64];
  multiply<T>(8, 8, 8, left, 8, right, out, false);
  release<T>();
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

// Whether this processor has products of these numbers.
int experts_check(int64_t kind, char* error, int64_t room) {
  return guarded(error, room, [&] { kind == FLOAT ? probe<float>() : probe<bf16>(); });
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
