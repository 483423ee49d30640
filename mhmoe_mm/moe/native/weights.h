// The experts' parameters, or their gradients: [experts ...], null where there are none.
#pragma once

#include "rows.h"

namespace experts {

struct Weights {
  void *w_in, *b_in, *w_out, *b_out, *w_gate, *b_gate;
};

// Those of one expert.
template <typename W>
struct Own {
  W *w_in, *b_in, *w_out, *b_out, *w_gate, *b_gate;

  Own(const Weights& all, const Sizes& sizes, int64_t expert) {
    const int64_t matrix = sizes.width * sizes.size;
    w_in = of(all.w_in, expert * matrix);
    w_out = of(all.w_out, expert * matrix);
    w_gate = of(all.w_gate, expert * matrix);
    b_in = of(all.b_in, expert * sizes.size);
    b_gate = of(all.b_gate, expert * sizes.size);
    b_out = of(all.b_out, expert * sizes.width);
  }

 private:
  static W* of(void* all, int64_t offset) {
    return all == nullptr ? nullptr : static_cast<W*>(all) + offset;
  }
};

// From number `offset` on, if there are any.
template <typename W>
W* from(W* some, int64_t offset) {
  return some == nullptr ? nullptr : some + offset;
}

}  // namespace experts
