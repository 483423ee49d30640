#pragma once

#include "activations.h"
#include "weights.h"

namespace experts {

// out [tokens width]: for every token the sum of its experts' answers times its gates.
//
// `answer` [rows width] is room for the answers of rows. What is before the activations is kept in
// `pre` and `pre_gate` [rows size], unless those are null.
template <typename T, typename W>
void forward(
    const Sizes& sizes, const Plan& plan, const Weights& weights, const T* token, T* pre,
    T* pre_gate, T* answer, T* out) {
  const Rows rows(sizes, plan);
  const int64_t width = sizes.width, size = sizes.size, inner = inner_piece<T>(sizes);
  const Pieces pieces(sizes, plan, rows_for_threads(sizes, plan));
  for_each<T>(pieces.size(), [&](int64_t item) {
    const auto [expert, begin, count] = pieces.all[item];
    const Own<const W> own(weights, sizes, expert);
    Scratch scratch;
    T* row = scratch.take<T>(count * width);
    unit* packed = scratch.take<unit>(inner * width / PAIR<T>);
    float* product = scratch.take<float>(count * inner);
    float* product_gate = scratch.take<float>(sizes.gated ? count * inner : 0);
    T* hidden = scratch.take<T>(count * inner);
    float* sum = scratch.take<float>(count * width);
    T* line = scratch.take<T>(2 * inner);
    gather(token, rows.token.data() + begin, count, width, row);
    for (int64_t first = 0; first < size; first += inner) {
      const int64_t part = std::min(inner, size - first);
      pack<T>(own.w_in + first, size, width, part, packed);
      multiply(count, part, width, row, width, packed, product, false);
      if (sizes.gated) {
        pack<T>(own.w_gate + first, size, width, part, packed);
        multiply(count, part, width, row, width, packed, product_gate, false);
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t place = (begin + r) * size + first;
        T* before = pre == nullptr ? line : pre + place;
        shift_and_round(product + r * part, from(own.b_in, first), part, before);
        if (sizes.gated) {
          T* gate = pre_gate == nullptr ? line + inner : pre_gate + place;
          shift_and_round(product_gate + r * part, from(own.b_gate, first), part, gate);
          gated_silu(before, gate, part, hidden + r * part);
        } else {
          gelu(before, part, hidden + r * part);
        }
      }
      pack<T>(own.w_out + first * width, width, part, width, packed);
      multiply(count, width, part, hidden, part, packed, sum, first > 0);
    }
    for (int64_t r = 0; r < count; ++r) {
      shift_and_round(sum + r * width, own.b_out, width, answer + (begin + r) * width);
    }
  });
  put_back(sizes, plan, answer, true, out);
}

}  // namespace experts
