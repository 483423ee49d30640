// Pieces of matrices as the micro-kernels of torch (oneDNN's) want them.
//
// A product's right matrix is read in units of 32 bits: one float32, or two bfloat16 that lie below
// each other in the matrix. A packed right matrix of `inner` rows and `columns` is
// [inner / PAIR][columns] units.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "numbers.h"

namespace experts {

using unit = uint32_t;

// Rows that a matrix is asked for beforehand: its pieces begin anew with every row, which
// processors do not foresee.
constexpr int64_t AHEAD = 8;

// Numbers in a unit.
template <typename T>
constexpr int64_t PAIR = sizeof(unit) / sizeof(T);

inline unit joined(float number) { return bits_of(number); }
inline unit joined(bf16 upper, bf16 lower) {
  return static_cast<unit>(upper) | static_cast<unit>(lower) << 16;
}

// out (+)= left x right: [m inner] x [inner n], right packed.
template <typename T>
inline void multiply(
    int64_t m, int64_t n, int64_t inner, const T* left, int64_t left_step, const unit* right,
    float* out, bool add) {
  using Number = std::conditional_t<sizeof(T) == 2, at::BFloat16, float>;
  at::native::cpublas::brgemm(
      m, n, inner, left_step, n, n, add, reinterpret_cast<const Number*>(left),
      reinterpret_cast<const Number*>(right), out, sizeof(T) == 2);
}

template <typename T>
inline void release() {
  at::native::cpublas::brgemm_release(sizeof(T) == 2);
}

// Asks for numbers that are read soon; where they lie beyond an array, nothing comes of it.
template <typename T>
inline void prefetch(const T* from, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(from);
  const int64_t line = 64, all = count * static_cast<int64_t>(sizeof(T));
  for (int64_t b = 0; b < all; b += line) __builtin_prefetch(bytes + b);
}

// Packs [inner columns], whose rows are `step` numbers apart.
template <typename T, typename W>
inline void pack(const W* matrix, int64_t step, int64_t inner, int64_t columns, unit* out) {
  for (int64_t k = 0; k < inner; k += PAIR<T>, out += columns) {
    const W* upper = matrix + k * step;
    for (int64_t i = 0; i < PAIR<T>; ++i) prefetch(upper + (AHEAD + i) * step, columns);
    if constexpr (PAIR<T> == 1) {
      for (int64_t c = 0; c < columns; ++c) out[c] = joined(converted<T>(upper[c]));
    } else {
      const W* lower = upper + step;
      for (int64_t c = 0; c < columns; ++c) {
        out[c] = joined(converted<T>(upper[c]), converted<T>(lower[c]));
      }
    }
  }
}

#ifdef __AVX512F__
// 16 x 16 units at most; `rows` and `columns` of them are there.
inline void transpose_tile(
    const unit* in, int64_t in_step, int64_t rows, int64_t columns, unit* out, int64_t out_step) {
  const __mmask16 in_mask = static_cast<__mmask16>((1u << columns) - 1);
  const __mmask16 out_mask = static_cast<__mmask16>((1u << rows) - 1);
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) {
    a[i] = i < rows ? _mm512_maskz_loadu_epi32(in_mask, in + i * in_step) : _mm512_setzero_si512();
  }
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // Now a[4 q + j] holds rows 4 q to 4 q + 3 of columns j, 4 + j, 8 + j and 12 + j.
  for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    b[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    b[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    b[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    b[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
  for (int i = 0; i < columns; ++i) _mm512_mask_storeu_epi32(out + i * out_step, out_mask, b[i]);
}
#else
inline void transpose_tile(
    const unit* in, int64_t in_step, int64_t rows, int64_t columns, unit* out, int64_t out_step) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) out[c * out_step + r] = in[r * in_step + c];
  }
}
#endif

// [rows columns] units to [columns rows].
inline void transpose(
    const unit* in, int64_t in_step, int64_t rows, int64_t columns, unit* out, int64_t out_step) {
  constexpr int64_t SIDE = 16;
  for (int64_t r = 0; r < rows; r += SIDE) {
    for (int64_t c = 0; c < columns; c += SIDE) {
      transpose_tile(
          in + r * in_step + c, in_step, std::min(SIDE, rows - r), std::min(SIDE, columns - c),
          out + c * out_step + r, out_step);
    }
  }
}

constexpr int64_t LINES = 16;

// Packs the transpose of [columns inner], whose rows are `step` numbers apart. `lines` is room for
// LINES * inner numbers.
template <typename T, typename W>
inline void pack_transposed(
    const W* matrix, int64_t step, int64_t inner, int64_t columns, unit* out, T* lines) {
  if constexpr (std::is_same_v<T, W>) {
    if (step % PAIR<T> == 0) {  // rows begin with a unit
      transpose(
          reinterpret_cast<const unit*>(matrix), step / PAIR<T>, columns, inner / PAIR<T>, out,
          columns);
      return;
    }
  }
  for (int64_t c = 0; c < columns; c += LINES) {
    const int64_t count = std::min(LINES, columns - c);
    for (int64_t i = 0; i < count; ++i) {
      const W* row = matrix + (c + i) * step;
      for (int64_t k = 0; k < inner; ++k) lines[i * inner + k] = converted<T>(row[k]);
    }
    transpose(
        reinterpret_cast<const unit*>(lines), inner / PAIR<T>, count, inner / PAIR<T>, out + c,
        columns);
  }
}

// sums += the rows of a packed matrix; in double, for rows are many and may cancel
template <typename T>
inline void add_rows(const unit* packed, int64_t rows, int64_t columns, double* sums) {
  for (int64_t r = 0; r < rows; r += PAIR<T>, packed += columns) {
    for (int64_t c = 0; c < columns; ++c) {
      if constexpr (PAIR<T> == 1) {
        sums[c] += of_bits(packed[c]);
      } else {
        sums[c] += of_bits(packed[c] << 16) + of_bits(packed[c] & 0xffff0000u);
      }
    }
  }
}

}  // namespace experts
