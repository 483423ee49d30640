"""Triton kernels of experts: rows lie sorted by expert, in blocks of BM rows of one expert each.

A kernel with a grid over rows has one program for a block and a tile of BN columns. Blocks behind
the last expert's hold whatever the memory held: their expert is `num_experts`, and they are left
alone. `source` is the token of each row, -1 where a row only pads a block: it reads as zeros.
Products add up in float32. No program writes what another one writes, so there are no atomics, and
with the same tiles answers are the same to the bit.

Sizes in the signatures: `width` features of a token, `size` inner features of an expert. Matrices
are contiguous. Offsets are of 64 bits: rows times features may be beyond 2^31.
"""

import triton
import triton.language as tl

from mhmoe_mm.moe.triton_tuning import HEAVY, INTERPRETED, OUTER, PRODUCT, tuned

PART = 32
"""Columns of which one program sums the share of a row's dot product."""
_WIDEN = tl.constexpr(INTERPRETED)
"""The interpreter multiplies bfloat16 as if they were integers
(https://github.com/triton-lang/triton/issues/11584): it is given float32.
"""


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):
    density = tl.exp(-0.5 * x * x) * 0.3989422804014327
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr):
    """total + left x right."""
    if _WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def times(
    total, row, source, weight, inner_size, column, columns, step_inner, step_column,
    PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """total + row[source] x weight, where `source` is not negative."""
    for k in range(0, inner_size, BK):
        inner = k + tl.arange(0, BK)
        left = tl.load(
            row + source[:, None] * inner_size + inner[None, :],
            mask=(source[:, None] >= 0) & (inner[None, :] < inner_size), other=0.0,
        )  # fmt: skip
        right = tl.load(
            weight + inner[:, None] * step_inner + column[None, :] * step_column,
            mask=(inner[:, None] < inner_size) & (column[None, :] < columns), other=0.0,
        )  # fmt: skip
        total = dot(left, right, total, PRECISION)
    return total


@tuned(["width", "size", "num_experts", "BM", "PRECISION"], PRODUCT)
@triton.jit
def first_kernel(
    token, source, expert, w_in, b_in, w_gate, b_gate, hidden, pre, pre_gate,
    width, size, num_experts,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """hidden = gelu(a), or a * silu(g) if there is a w_gate, with a = token[source] x w_in + b_in,
    g alike; a and g are written to `pre` and `pre_gate` unless those are None.
    """
    block, tile = tl.program_id(0) // tl.cdiv(size, BN), tl.program_id(0) % tl.cdiv(size, BN)
    own = tl.load(expert + block.to(tl.int64) * BM)
    if own >= num_experts:
        return
    rows = block.to(tl.int64) * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    there = column < size
    come = tl.load(source + rows)
    place = rows[:, None] * size + column[None, :]

    a = tl.zeros([BM, BN], tl.float32)
    matrix = own * width * size
    a = times(a, token, come, w_in + matrix, width, column, size, size, 1, PRECISION, BK)
    if b_in is not None:
        shift = tl.load(b_in + own * size + column, mask=there, other=0.0)
        a += shift.to(tl.float32)[None, :]
    rounded_a = a.to(hidden.dtype.element_ty)  # as the backward will read it
    a = rounded_a.to(tl.float32)
    if pre is not None:
        tl.store(pre + place, rounded_a, mask=there[None, :])
    if w_gate is None:
        answer = gelu(a)
    else:
        g = tl.zeros([BM, BN], tl.float32)
        g = times(g, token, come, w_gate + matrix, width, column, size, size, 1, PRECISION, BK)
        if b_gate is not None:
            g += tl.load(b_gate + own * size + column, mask=there, other=0.0).to(tl.float32)[
                None, :
            ]
        rounded_g = g.to(hidden.dtype.element_ty)
        g = rounded_g.to(tl.float32)
        if pre_gate is not None:
            tl.store(pre_gate + place, rounded_g, mask=there[None, :])
        answer = a * (g * tl.sigmoid(g))
    tl.store(hidden + place, answer.to(hidden.dtype.element_ty), mask=there[None, :])


@tuned(["inner_size", "columns", "num_experts", "BM", "PRECISION"], PRODUCT)
@triton.jit
def rows_kernel(
    row, expert, weight, bias, row2, weight2, out,
    inner_size, columns, num_experts, step_inner, step_column,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out = row x weight + row2 x weight2 + bias, each of the last two where it is not None."""
    block, tile = tl.program_id(0) // tl.cdiv(columns, BN), tl.program_id(0) % tl.cdiv(columns, BN)
    own = tl.load(expert + block.to(tl.int64) * BM)
    if own >= num_experts:
        return
    rows = block.to(tl.int64) * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    there = column < columns
    total = tl.zeros([BM, BN], tl.float32)
    matrix = own * inner_size * columns
    total = times(
        total, row, rows, weight + matrix, inner_size, column, columns, step_inner, step_column,
        PRECISION, BK,
    )  # fmt: skip
    if row2 is not None:
        total = times(
            total, row2, rows, weight2 + matrix, inner_size, column, columns, step_inner,
            step_column, PRECISION, BK,
        )  # fmt: skip
    if bias is not None:
        shift = tl.load(bias + own * columns + column, mask=there, other=0.0)
        total += shift.to(tl.float32)[None, :]
    place = rows[:, None] * columns + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there[None, :])


@triton.jit
def gather_sum_kernel(
    row, slot, start, weight, out, num_tokens, num_assign, nobody, width, BW: tl.constexpr
):
    """out[t] = the sum of row[slot[a]] * weight[a] over the assignments of token t; those whose
    slot is `nobody` are left out. A program for a token and BW of its features.
    """
    chunks = tl.cdiv(width, BW)
    token = (tl.program_id(0) // chunks).to(tl.int64)
    column = tl.program_id(0) % chunks * BW + tl.arange(0, BW)
    begin = tl.load(start + token)
    stop = tl.load(start + token + 1, mask=token + 1 < num_tokens, other=num_assign)
    total = tl.zeros([BW], tl.float32)
    for assign in range(begin, stop):
        where = tl.load(slot + assign)
        real = (column < width) & (where != nobody)
        each = tl.load(row + where * width + column, mask=real, other=0.0).to(tl.float32)
        if weight is not None:
            each *= tl.load(weight + assign).to(tl.float32)
        total += each
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask=column < width)


@tuned(["width", "size", "num_experts", "BM", "PRECISION"], HEAVY)
@triton.jit
def first_grad_kernel(
    grad, source, gate, expert, w_out, b_out, pre, pre_gate,
    hidden, grad_pre, grad_pre_gate, gate_shares,
    width, size, num_experts,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """From the gradient of tokens' answers to that of what is before the activation.

    `hidden` is made anew from `pre`. `gate_shares`[row, PART columns] add up to the dot product of
    the gradient with the row's answer, which is that of `hidden` with grad x w_out^T and the bias's
    part: the gradient of the row's gate, without the answers being kept.
    """
    block, tile = tl.program_id(0) // tl.cdiv(size, BN), tl.program_id(0) % tl.cdiv(size, BN)
    own = tl.load(expert + block.to(tl.int64) * BM)
    if own >= num_experts:
        return
    rows = block.to(tl.int64) * BM + tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
    there = column < size
    come = tl.load(source + rows)
    place = rows[:, None] * size + column[None, :]

    g_hidden = tl.zeros([BM, BN], tl.float32)
    g_hidden = times(
        g_hidden, grad, come, w_out + own * width * size, width, column, size, 1, width,
        PRECISION, BK,
    )  # fmt: skip
    a = tl.load(pre + place, mask=there[None, :], other=0.0).to(tl.float32)
    scale = tl.load(gate + rows).to(tl.float32)[:, None]
    if pre_gate is None:
        answer = gelu(a)
        g_a = g_hidden * scale * gelu_slope(a)
    else:
        g = tl.load(pre_gate + place, mask=there[None, :], other=0.0).to(tl.float32)
        share = tl.sigmoid(g)
        answer = a * (g * share)
        g_a = g_hidden * scale * (g * share)
        g_g = g_hidden * scale * a * (share * (1.0 + g * (1.0 - share)))
        tl.store(grad_pre_gate + place, g_g.to(grad_pre_gate.dtype.element_ty), mask=there[None, :])
    rounded = answer.to(hidden.dtype.element_ty)
    tl.store(hidden + place, rounded, mask=there[None, :])
    tl.store(grad_pre + place, g_a.to(grad_pre.dtype.element_ty), mask=there[None, :])

    shares = tl.reshape(g_hidden * rounded.to(tl.float32), [BM, BN // PART, PART])
    shares = tl.sum(shares, axis=2)
    part = tile * (BN // PART) + tl.arange(0, BN // PART)
    if b_out is not None:
        of_bias = tl.zeros([BM], tl.float32)
        for k in range(0, width, BK):
            inner = k + tl.arange(0, BK)
            up = tl.load(
                grad + come[:, None] * width + inner[None, :],
                mask=(come[:, None] >= 0) & (inner[None, :] < width), other=0.0,
            )  # fmt: skip
            shift = tl.load(b_out + own * width + inner, mask=inner < width, other=0.0)
            of_bias += tl.sum(up.to(tl.float32) * shift.to(tl.float32)[None, :], axis=1)
        shares += tl.where(part == 0, 1.0, 0.0)[None, :] * of_bias[:, None]
    parts = tl.cdiv(size, PART)
    share_place = rows[:, None] * parts + part[None, :]
    tl.store(gate_shares + share_place, shares, mask=(part < parts)[None, :])


@tuned(["a", "b", "BR", "PRECISION", "GATHER_LEFT"], OUTER)
@triton.jit
def weight_grad_kernel(
    left, right, source, gate, end, grad, grad_bias, a, b,
    GATHER_LEFT: tl.constexpr, PRECISION: tl.constexpr, BR: tl.constexpr,
    BA: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """grad[e] = the sum over e's rows of left^T x right, a program for BA by BB features of one
    expert; `grad_bias`[e] (unless None) that of right. One side is read through `source`: left, or
    right, which is then weighted with the rows' gates.
    """
    across, down = tl.cdiv(b, BB), tl.cdiv(a, BA)
    own = (tl.program_id(0) // (across * down)).to(tl.int64)
    tile = tl.program_id(0) % (across * down)
    i = tile // across * BA + tl.arange(0, BA)
    j = tile % across * BB + tl.arange(0, BB)
    begin = tl.load(end + own - 1, mask=own > 0, other=0)
    stop = tl.load(end + own)
    total = tl.zeros([BA, BB], tl.float32)
    shift = tl.zeros([BB], tl.float32)
    for first in range(begin, stop, BR):
        rows = (first + tl.arange(0, BR)).to(tl.int64)
        come = tl.load(source + rows)
        real = come >= 0
        left_row = come if GATHER_LEFT else rows
        right_row = rows if GATHER_LEFT else come
        x = tl.load(
            left + i[:, None] + left_row[None, :] * a,
            mask=(i[:, None] < a) & real[None, :], other=0.0,
        )  # fmt: skip
        y = tl.load(
            right + right_row[:, None] * b + j[None, :],
            mask=real[:, None] & (j[None, :] < b), other=0.0,
        )  # fmt: skip
        if not GATHER_LEFT:
            y = (y.to(tl.float32) * tl.load(gate + rows).to(tl.float32)[:, None]).to(y.dtype)
        total = dot(x, y, total, PRECISION)
        if grad_bias is not None:
            shift += tl.sum(y.to(tl.float32), axis=0)
    place = own * a * b + i[:, None].to(tl.int64) * b + j[None, :]
    inside = (i[:, None] < a) & (j[None, :] < b)
    tl.store(grad + place, total.to(grad.dtype.element_ty), mask=inside)
    if grad_bias is not None:
        first_tile = (tile // across == 0) & (j < b)
        tl.store(grad_bias + own * b + j, shift.to(grad_bias.dtype.element_ty), mask=first_tile)
