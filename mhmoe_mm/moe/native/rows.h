// Which rows there are, how work on them is cut into items for threads, and the way from tokens to
// rows and back.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "matrices.h"

namespace experts {

struct Sizes {
  int64_t tokens, assignments, rows;
  int64_t width;    // features of a token
  int64_t size;     // inner features of an expert
  int64_t experts;
  int64_t gated;    // whether there is a W_gate
};

struct Plan {
  const int64_t* slot;   // row of each assignment; behind the last block if it goes nowhere
  const int64_t* token;  // token of each assignment
  const float* weight;   // of each assignment: its gate
  const int64_t* start;  // first assignment of each token
  const int32_t* end;    // row behind each expert's block
};

inline int64_t taken_rows(const Sizes& sizes, const Plan& plan) {
  return sizes.experts ? plan.end[sizes.experts - 1] : 0;
}

constexpr int64_t STEP = 32;  // of sizes of pieces, where they can be

// Inner features that are worked on together: a piece of a matrix that a core's cache has room for,
// all pieces about equal.
template <typename T>
int64_t inner_piece(const Sizes& sizes) {
  constexpr int64_t NUMBERS = (1 << 17) / sizeof(T);
  const int64_t most = std::clamp(NUMBERS / std::max<int64_t>(1, sizes.width), STEP, 16 * STEP);
  const int64_t pieces = std::max<int64_t>(1, (sizes.size + most - 1) / most);
  const int64_t each = (sizes.size + pieces - 1) / pieces;
  return std::min(sizes.size, (each + STEP - 1) / STEP * STEP);
}

// A few rows of one expert.
struct Piece {
  int64_t expert, begin, count;
};

struct Pieces {
  std::vector<Piece> all;      // sorted by expert
  std::vector<int64_t> first;  // of each expert; one more behind the last
  int64_t most = 0;            // rows in the largest

  Pieces(const Sizes& sizes, const Plan& plan, int64_t rows) {
    int64_t begin = 0;
    for (int64_t expert = 0; expert < sizes.experts; ++expert) {
      first.push_back(size());
      while (begin < plan.end[expert]) {
        const int64_t count = std::min(rows, plan.end[expert] - begin);
        all.push_back({expert, begin, count});
        most = std::max(most, count);
        begin += count;
      }
    }
    first.push_back(size());
  }

  int64_t size() const { return static_cast<int64_t>(all.size()); }
};

// Rows of a piece whose answers do not depend on it: as many as leave something for every thread.
inline int64_t rows_for_threads(const Sizes& sizes, const Plan& plan) {
  const int64_t share = taken_rows(sizes, plan) / (4 * at::get_num_threads());
  return std::clamp(share / STEP * STEP, STEP, 8 * STEP);
}

// Calls item(0), ..., item(count - 1), each in some thread.
template <typename T, typename F>
void for_each(int64_t count, const F& item) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < count;) item(i);
    release<T>();
  });
}

// Arrays of one thread, whose memory is kept. One Scratch at a time.
class Scratch {
 public:
  template <typename N>
  N* take(int64_t count) {
    auto& bytes = next();
    const size_t wanted = static_cast<size_t>(count) * sizeof(N) + LINE;
    if (bytes.size() < wanted) bytes.resize(wanted);
    const auto address = reinterpret_cast<uintptr_t>(bytes.data());
    return reinterpret_cast<N*>((address + LINE - 1) / LINE * LINE);
  }

 private:
  static constexpr size_t LINE = 64;

  std::vector<char>& next() {
    thread_local std::vector<std::vector<char>> kept;
    if (taken_ == kept.size()) kept.emplace_back();
    return kept[taken_++];
  }

  size_t taken_ = 0;
};

// What rows read: their tokens, -1 where a row only pads its block, and their gates.
struct Rows {
  std::vector<int64_t> token;
  std::vector<float> gate;

  Rows(const Sizes& sizes, const Plan& plan) : token(sizes.rows, -1), gate(sizes.rows, 0.0f) {
    const int64_t taken = taken_rows(sizes, plan);
    for (int64_t i = 0; i < sizes.assignments; ++i) {
      if (plan.slot[i] >= taken) continue;
      token[plan.slot[i]] = plan.token[i];
      gate[plan.slot[i]] = plan.weight[i];
    }
  }
};

// Tokens to rows; zeros for a row that pads.
template <typename T>
void gather(const T* from, const int64_t* token, int64_t count, int64_t width, T* to) {
  for (int64_t r = 0; r < count; ++r, to += width) {
    if (token[r] < 0) {
      std::memset(to, 0, width * sizeof(T));
    } else {
      std::memcpy(to, from + token[r] * width, width * sizeof(T));
    }
  }
}

// For every token the sum of its rows, times their gates if `weighted`.
template <typename T>
void put_back(const Sizes& sizes, const Plan& plan, const T* row, bool weighted, T* out) {
  const int64_t taken = taken_rows(sizes, plan), width = sizes.width;
  at::parallel_for(0, sizes.tokens, 64, [&](int64_t begin, int64_t end) {
    float* sum = Scratch().take<float>(width);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t last = t + 1 < sizes.tokens ? plan.start[t + 1] : sizes.assignments;
      std::fill_n(sum, width, 0.0f);
      for (int64_t i = plan.start[t]; i < last; ++i) {
        if (plan.slot[i] >= taken) continue;
        add_scaled(row + plan.slot[i] * width, weighted ? plan.weight[i] : 1.0f, width, sum);
      }
      round_all(sum, width, out + t * width);
    }
  });
}

}  // namespace experts
