"""The released decoder layer, written out from its description: outputs and every gradient."""

import math

import pytest
import torch
from torch import Tensor

from mhmoe_mm.models.positions import RotaryPositions
from mhmoe_mm.models.released_decoder import from_released_layer, released_layer
from mhmoe_mm.moe.released import ReleasedLayer

DIM, ATTENTION_HEADS, HIDDEN, BATCH, SEQ = 24, 3, 7, 2, 11
BALANCE_WEIGHT = 0.01


def released_state(heads: int, experts: int | None) -> dict[str, Tensor]:
    """Random weights under the released names."""
    draw, width = torch.Generator().manual_seed(1), DIM // heads
    shapes = {"self_attn_layer_norm.weight": (DIM,), "final_layer_norm.weight": (DIM,)}
    shapes |= {f"self_attn.{name}_proj.weight": (DIM, DIM) for name in ("q", "k", "v", "out")}
    if experts is None:
        shapes |= {"ffn.fc1.weight": (HIDDEN, DIM), "ffn.fc3.weight": (HIDDEN, DIM)}
        shapes["ffn.fc2.weight"] = (DIM, HIDDEN)
    else:
        shapes["moe_layer.gate.wg.weight"] = (experts, width)
        for name in ("multi_heads", "out_proj") if heads > 1 else ():
            shapes |= {f"moe_layer.{name}.weight": (DIM, DIM), f"moe_layer.{name}.bias": (DIM,)}
        for e in range(experts):
            one = f"moe_layer.experts.{e}."
            shapes |= {f"{one}fc1.weight": (HIDDEN, width), f"{one}fc3.weight": (HIDDEN, width)}
            shapes[f"{one}fc2.weight"] = (width, HIDDEN)
    return {
        name: (
            torch.randn(shape, generator=draw) / (shape[-1] ** 0.5 if len(shape) > 1 else 3)
            + ("norm" in name)
        ).requires_grad_()
        for name, shape in shapes.items()
    }


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (sum(v * v for v in x) / len(x) + 1e-5).sqrt() * weight


def turned(x: Tensor, place: int) -> Tensor:
    """Features i and i + half of one head by the angle place / 10000^(i / half)."""
    half = len(x) // 2
    first, second = [], []
    for i in range(half):
        angle = place * 10000.0 ** (-i / half)
        cos, sin = math.cos(angle), math.sin(angle)
        first.append(x[i] * cos - x[i + half] * sin)
        second.append(x[i + half] * cos + x[i] * sin)
    return torch.stack(first + second)


def attention(rows: list[Tensor], state: dict[str, Tensor]) -> list[Tensor]:
    """One sequence, one token and one head after the other."""
    width, answers = DIM // ATTENTION_HEADS, []
    query, key, value = (
        [state[f"self_attn.{name}_proj.weight"] @ row for row in rows] for name in "qkv"
    )
    for t in range(len(rows)):
        parts = []
        for head in range(ATTENTION_HEADS):
            own = slice(head * width, head * width + width)
            asked = turned(query[t][own], t)
            score = [asked @ turned(key[s][own], s) / width**0.5 for s in range(t + 1)]
            share = torch.stack(score).softmax(dim=0)
            parts.append(sum(share[s] * value[s][own] for s in range(t + 1)))
        answers.append(state["self_attn.out_proj.weight"] @ torch.cat(parts))
    return answers


def swiglu(x: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    gate = state[f"{prefix}fc3.weight"] @ x
    inner = (state[f"{prefix}fc1.weight"] @ x) * gate * gate.sigmoid()
    return state[f"{prefix}fc2.weight"] @ inner


def mixture(
    rows: list[Tensor], state: dict[str, Tensor], heads: int, experts: int, top_k: int
) -> tuple[list[Tensor], Tensor, int]:
    """The answers, the balance loss and how many assignments found no room; all first choices queue
    before all second ones.
    """
    width, sub_tokens = DIM // heads, []
    for row in rows:
        if heads > 1:
            row = state["moe_layer.multi_heads.weight"] @ row + state["moe_layer.multi_heads.bias"]
        sub_tokens += row.split(width)
    prob = [(state["moe_layer.gate.wg.weight"] @ sub).softmax(dim=0) for sub in sub_tokens]
    wanted = [p.topk(top_k).indices.tolist() for p in prob]
    room = [top_k * math.ceil(len(sub_tokens) / experts)] * experts
    mixed, dropped = [torch.zeros(width) for _ in sub_tokens], 0
    for choice in range(top_k):
        for n, sub in enumerate(sub_tokens):
            expert = wanted[n][choice]
            if not room[expert]:
                dropped += 1
            else:
                room[expert] -= 1
                answer = swiglu(sub, state, f"moe_layer.experts.{expert}.")
                mixed[n] = mixed[n] + prob[n][expert] * answer
    answers = []
    for t in range(len(rows)):
        joined = torch.cat(mixed[t * heads : (t + 1) * heads])
        if heads > 1:
            joined = state["moe_layer.out_proj.weight"] @ joined
            joined = joined + state["moe_layer.out_proj.bias"]
        answers.append(joined)
    total, balance = len(sub_tokens), torch.zeros(())
    for expert in range(experts):
        mean = sum(p[expert] for p in prob) / total
        balance = balance + experts * mean * sum(w[0] == expert for w in wanted) / total
    return answers, balance, dropped


def plain_layer(x: Tensor, state: dict[str, Tensor], sparse) -> tuple[Tensor, Tensor, int]:
    """`sparse` is None or (heads, experts, top_k)."""
    rows = []
    for sequence in x:
        norm = [rms(row, state["self_attn_layer_norm.weight"]) for row in sequence]
        rows += [row + y for row, y in zip(sequence, attention(norm, state), strict=True)]
    norm = [rms(row, state["final_layer_norm.weight"]) for row in rows]
    if sparse is None:
        answers = [swiglu(row, state, "ffn.") for row in norm]
        balance, dropped = torch.zeros(()), 0
    else:
        answers, balance, dropped = mixture(norm, state, *sparse)
    out = torch.stack([row + y for row, y in zip(rows, answers, strict=True)])
    return out.view(x.shape), balance, dropped


@pytest.mark.parametrize("sparse", [None, (1, 5, 1), (2, 5, 2), (4, 3, 1)])
def test_outputs_and_every_gradient_equal_the_released_layer_written_out(sparse):
    state = released_state(*(sparse[:2] if sparse else (1, None)))
    x = torch.randn(BATCH, SEQ, DIM, generator=torch.Generator().manual_seed(2)).requires_grad_()
    probe = torch.linspace(-1, 1, x.numel()).view_as(x)
    expected, expected_balance, dropped = plain_layer(x, state, sparse)
    loss = (expected * probe).sum() + BALANCE_WEIGHT * expected_balance
    grad_x, *grads = torch.autograd.grad(loss, [x, *state.values()], materialize_grads=True)

    settings = None
    if sparse is not None:
        heads, experts, top_k = sparse
        settings = ReleasedLayer(DIM, HIDDEN, heads, experts, top_k)
    layer = released_layer(DIM, ATTENTION_HEADS, settings, HIDDEN)
    layer.load_state_dict(from_released_layer(state, ATTENTION_HEADS))
    place = torch.arange(SEQ).expand(BATCH, SEQ)
    rotation = RotaryPositions(DIM, ATTENTION_HEADS, SEQ).rotation(place)
    found, load = layer(x, rotation, None, None, None)
    loss = (found * probe).sum()
    if load is not None:
        assert load.dropped.sum() == dropped > 0
        torch.testing.assert_close(load.balance, expected_balance)
        loss = loss + BALANCE_WEIGHT * load.balance
    names = [name for name, _ in layer.named_parameters()]
    ours = torch.autograd.grad(loss, [x, *layer.parameters()])

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours[0], grad_x, atol=1e-4, rtol=1e-4)
    theirs = from_released_layer(dict(zip(state, grads, strict=True)), ATTENTION_HEADS)
    assert theirs.keys() == set(names)
    for name, grad in zip(names, ours[1:], strict=True):
        torch.testing.assert_close(grad, theirs[name], atol=1e-4, rtol=1e-4)


def test_tensors_of_other_layers_and_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'encoder_attn\.q_proj\.weight' is not a tensor"):
        from_released_layer({"encoder_attn.q_proj.weight": torch.zeros(6, 6)}, 3)
    with pytest.raises(ValueError, match=r"'lora_A' is not a tensor of a released MH-MoE layer"):
        from_released_layer({"moe_layer.lora_A": torch.zeros(6, 6)}, 3)
    with pytest.raises(ValueError, match="6 features cannot be cut into num_heads=2 heads"):
        from_released_layer({"self_attn.q_proj.weight": torch.zeros(6, 6)}, 2)
