#pragma once

#include "activations.h"
#include "weights.h"

namespace experts {

// Rows in the layouts that the products of the backward read.
template <typename T>
struct Gathered {
  T* token;     // what rows read, of each piece [width count]
  T* grad;      // gradients of their tokens' sums [rows width]
  unit* gated;  // the same times the rows' gates, of each piece [count / PAIR][width] units
};

template <typename T>
void gather_for_backward(
    const Sizes& sizes, const Rows& rows, const Pieces& pieces, const T* token, const T* grad,
    const Gathered<T>& to) {
  const int64_t width = sizes.width;
  for_each<T>(pieces.size(), [&](int64_t item) {
    const auto [_, begin, count] = pieces.all[item];
    Scratch scratch;
    T* row = scratch.take<T>(count * width);
    T* gated = scratch.take<T>(PAIR<T> * width);
    unit* pairs = scratch.take<unit>(count / PAIR<T> * width);
    gather(token, rows.token.data() + begin, count, width, row);
    pack<T>(row, width, count, width, pairs);
    unit* turned = reinterpret_cast<unit*>(to.token + begin * width);
    transpose(pairs, width, count / PAIR<T>, width, turned, count / PAIR<T>);
    T* own = to.grad + begin * width;
    gather(grad, rows.token.data() + begin, count, width, own);
    unit* out = to.gated + begin / PAIR<T> * width;
    for (int64_t r = 0; r < count; r += PAIR<T>, out += width) {
      for (int64_t i = 0; i < PAIR<T>; ++i) {
        scale(own + (r + i) * width, rows.gate[begin + r + i], width, gated + i * width);
      }
      pack<T>(gated, width, PAIR<T>, width, out);
    }
  });
}

// Rounds [rows columns] to where rows are `step` numbers apart.
template <typename W>
void write(const float* from, int64_t rows, int64_t columns, W* to, int64_t step) {
  for (int64_t r = 0; r < rows; ++r) round_all(from + r * columns, columns, to + r * step);
}

// A gradient of a matrix in the making: the sum over pieces of rows.
struct Sum {
  float* numbers;
  int64_t rows, columns;
  bool begun = false;

  template <typename T>
  void add(int64_t inner, const T* left, const unit* right) {
    multiply(rows, columns, inner, left, inner, right, numbers, begun);
    begun = true;
  }

  template <typename W>
  void write_to(W* to, int64_t step) {
    if (!begun) std::fill_n(numbers, rows * columns, 0.0f);
    write(numbers, rows, columns, to, step);
  }
};

// Gradients of weights, and those before the activations, `grad_pre` and `grad_gate` [rows size].
// `share` [pieces of inner features][rows] are parts of the gates' gradients.
template <typename T, typename W>
void backward_inner(
    const Sizes& sizes, const Rows& rows, const Weights& weights, const Pieces& pieces,
    const Gathered<T>& given, const T* pre, const T* pre_gate, T* grad_pre, T* grad_gate,
    float* share, const Weights& out) {
  const int64_t width = sizes.width, size = sizes.size, inner = inner_piece<T>(sizes);
  const int64_t cuts = (size + inner - 1) / inner, most = pieces.most;
  const bool gated = sizes.gated;
  for_each<T>(sizes.experts * cuts, [&](int64_t item) {
    const int64_t expert = item / cuts, cut = item % cuts, first = cut * inner;
    const int64_t part = std::min(inner, size - first);
    const Own<const W> own(weights, sizes, expert);
    const Own<W> to(out, sizes, expert);
    Scratch scratch;
    unit* packed = scratch.take<unit>(part * width / PAIR<T>);
    T* lines = scratch.take<T>(LINES * width);
    float* grad_hidden = scratch.take<float>(most * part);
    T* hidden = scratch.take<T>(PAIR<T> * part);
    unit* hidden_pairs = scratch.take<unit>(most / PAIR<T> * part);
    T* hidden_turned = scratch.take<T>(most * part);
    unit* pre_pairs = scratch.take<unit>(most / PAIR<T> * part);
    unit* gate_pairs = scratch.take<unit>(gated ? most / PAIR<T> * part : 0);
    T* grads = scratch.take<T>(2 * PAIR<T> * part);
    T* grads_gate = grads + PAIR<T> * part;
    Sum sum_in{scratch.take<float>(width * part), width, part};
    Sum sum_gate{scratch.take<float>(gated ? width * part : 0), width, part};
    Sum sum_out{scratch.take<float>(part * width), part, width};
    double* bias_in = scratch.take<double>(2 * part + width);
    double *bias_gate = bias_in + part, *bias_out = bias_gate + part;
    std::fill_n(bias_in, 2 * part + width, 0.0);

    const int64_t end = pieces.first[expert + 1];
    for (int64_t p = pieces.first[expert]; p < end; ++p) {
      const auto [_, begin, count] = pieces.all[p];
      if (p == pieces.first[expert]) {
        pack_transposed<T>(own.w_out + first * width, width, width, part, packed, lines);
      }
      multiply(count, part, width, given.grad + begin * width, width, packed, grad_hidden, false);
      for (int64_t r = 0; r < count; r += PAIR<T>) {
        for (int64_t i = 0; i < PAIR<T>; ++i) {
          const int64_t row = begin + r + i, place = row * size + first;
          const float* grad = grad_hidden + (r + i) * part;
          const float gate = rows.gate[row];
          T *answer = hidden + i * part, *of_pre = grads + i * part, *of_gate = grads_gate + i * part;
          float& dots = share[cut * sizes.rows + row];
          prefetch(pre + place + 2 * PAIR<T> * size, part);
          if (gated) {
            prefetch(pre_gate + place + 2 * PAIR<T> * size, part);
            dots = gated_silu_backward(
                pre + place, pre_gate + place, grad, gate, part, answer, of_pre, of_gate);
            std::memcpy(grad_gate + place, of_gate, part * sizeof(T));
          } else {
            dots = gelu_backward(pre + place, grad, gate, part, answer, of_pre);
          }
          std::memcpy(grad_pre + place, of_pre, part * sizeof(T));
          if (own.b_out && cut == 0) dots += dot(given.grad + row * width, own.b_out, width);
        }
        const int64_t pair = r / PAIR<T> * part;
        pack<T>(hidden, part, PAIR<T>, part, hidden_pairs + pair);
        pack<T>(grads, part, PAIR<T>, part, pre_pairs + pair);
        if (gated) pack<T>(grads_gate, part, PAIR<T>, part, gate_pairs + pair);
      }
      unit* turned = reinterpret_cast<unit*>(hidden_turned);
      transpose(hidden_pairs, part, count / PAIR<T>, part, turned, count / PAIR<T>);
      const unit* gated_grad = given.gated + begin / PAIR<T> * width;
      sum_in.add(count, given.token + begin * width, pre_pairs);
      if (gated) sum_gate.add(count, given.token + begin * width, gate_pairs);
      sum_out.add(count, hidden_turned, gated_grad);
      if (to.b_in) add_rows<T>(pre_pairs, count, part, bias_in);
      if (to.b_gate) add_rows<T>(gate_pairs, count, part, bias_gate);
      if (to.b_out && cut == 0) add_rows<T>(gated_grad, count, width, bias_out);
    }
    sum_in.write_to(to.w_in + first, size);
    if (gated) sum_gate.write_to(to.w_gate + first, size);
    sum_out.write_to(to.w_out + first * width, width);
    if (to.b_in) round_all(bias_in, part, to.b_in + first);
    if (to.b_gate) round_all(bias_gate, part, to.b_gate + first);
    if (to.b_out && cut == 0) round_all(bias_out, width, to.b_out);
  });
}

// Gradients of rows: those before the activations times W_in^T and W_gate^T.
template <typename T, typename W>
void backward_rows(
    const Sizes& sizes, const Plan& plan, const Weights& weights, const T* grad_pre,
    const T* grad_gate, T* of_row) {
  const int64_t width = sizes.width, size = sizes.size, inner = inner_piece<T>(sizes);
  const Pieces pieces(sizes, plan, rows_for_threads(sizes, plan));
  for_each<T>(pieces.size(), [&](int64_t item) {
    const auto [expert, begin, count] = pieces.all[item];
    const Own<const W> own(weights, sizes, expert);
    Scratch scratch;
    unit* packed = scratch.take<unit>(inner * width / PAIR<T>);
    T* lines = scratch.take<T>(LINES * inner);
    float* sum = scratch.take<float>(count * width);
    for (int64_t first = 0; first < size; first += inner) {
      const int64_t part = std::min(inner, size - first), place = begin * size + first;
      pack_transposed<T>(own.w_in + first, size, part, width, packed, lines);
      multiply(count, width, part, grad_pre + place, size, packed, sum, first > 0);
      if (sizes.gated) {
        pack_transposed<T>(own.w_gate + first, size, part, width, packed, lines);
        multiply(count, width, part, grad_gate + place, size, packed, sum, true);
      }
    }
    write(sum, count, width, of_row + begin * width, width);
  });
}

// Gradients of tokens [tokens width], of gates [assignments] and of weights.
//
// `workspace` is room for rows * (3 width + size) numbers, or 2 size with a gate.
template <typename T, typename W>
void backward(
    const Sizes& sizes, const Plan& plan, const Weights& weights, const T* token, const T* grad,
    const T* pre, const T* pre_gate, T* workspace, T* of_token, float* of_gate,
    const Weights& out) {
  const Rows rows(sizes, plan);
  const int64_t inner = inner_piece<T>(sizes), cuts = (sizes.size + inner - 1) / inner;
  const int64_t all = sizes.rows * sizes.width;
  // As many rows as keep their inner features in a core's cache. Not by threads: how sums are cut
  // decides their last digits.
  const Pieces pieces(sizes, plan, std::clamp((1 << 14) / inner / STEP * STEP, STEP, 8 * STEP));
  const Gathered<T> given{
      workspace, workspace + all, reinterpret_cast<unit*>(workspace + 2 * all)};
  T* grad_pre = workspace + 3 * all;
  T* grad_gate = sizes.gated ? grad_pre + sizes.rows * sizes.size : nullptr;
  gather_for_backward(sizes, rows, pieces, token, grad, given);
  std::vector<float> share(cuts * sizes.rows);
  backward_inner<T, W>(
      sizes, rows, weights, pieces, given, pre, pre_gate, grad_pre, grad_gate, share.data(), out);
  T* of_row = workspace;  // what was gathered is not read any more
  backward_rows<T, W>(sizes, plan, weights, grad_pre, grad_gate, of_row);
  put_back(sizes, plan, of_row, false, of_token);
  const int64_t taken = taken_rows(sizes, plan);
  for (int64_t i = 0; i < sizes.assignments; ++i) {
    of_gate[i] = 0;
    if (plan.slot[i] >= taken) continue;
    for (int64_t c = 0; c < cuts; ++c) of_gate[i] += share[c * sizes.rows + plan.slot[i]];
  }
}

}  // namespace experts
