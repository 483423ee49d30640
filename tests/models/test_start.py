"""Networks that start at unit size."""

from functools import partial

import pytest
import torch

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import ReleasedLayout, SharedLayout
from mhmoe_mm.models.start import UnitStart
from mhmoe_mm.moe import GeluExperts, MHMoE, SparseMoE, SwiGLUExperts

UNIT = UnitStart()
dense = partial(GeluFFN, hidden=257)
SPARSE = {
    "none": None,
    "sparse": partial(SparseMoE, num_experts=5, experts=partial(GeluExperts, hidden=61)),
    "multi-head": partial(MHMoE, num_experts=5, experts=partial(GeluExperts, hidden=61)),
    "shared": partial(
        MHMoE, num_experts=5, merge_layers=0, shared=dense,
        experts=partial(SwiGLUExperts, hidden=61),
    ),
}  # fmt: skip


def net(layers: int, sparse: str = "none", layout: type = SharedLayout, start=UNIT) -> BEiT3:
    torch.manual_seed(0)
    made = layout(dense=dense, sparse=SPARSE[sparse], sparse_every=1, sub_norm=False)
    return BEiT3(
        made, image_size=32, patch_size=8, vocab_size=31, dim=64, num_layers=layers, num_heads=4,
        normalize_output=False, start=start,
    )  # fmt: skip


@torch.no_grad()
def sizes(model: BEiT3) -> tuple[float, float]:
    """Standard deviation of the hidden rows of images and of texts."""
    encoded = model(torch.randn(7, 3, 32, 32), torch.randint(31, (7, 11)))
    split = encoded.split
    return encoded.hidden[:, :split].std().item(), encoded.hidden[:, split:].std().item()


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize("layers", [2, 13])
def test_rows_have_a_size_near_one_at_any_depth(layers, sparse):
    for size in sizes(net(layers, sparse)):
        assert 0.9 < size < 1.7


def test_without_it_tokens_are_drowned_by_what_is_added_to_them():
    tokens, rows = [], []
    for start in (UNIT, None):
        model = net(13, start=start)
        tokens.append(model.text_embedding.token.weight.std().item())
        rows.append(sizes(model)[1])
    assert rows[0] / tokens[0] < 2
    assert rows[1] / tokens[1] > 4


@pytest.mark.parametrize("sparse", SPARSE)
def test_every_branch_adds_less_the_deeper_the_network_is(sparse):
    def last(model: BEiT3) -> list[float]:
        names = ("attention.out", "down.weight", "merge_proj", "w_out")
        named = {n: p for n, p in model.named_parameters() if p.ndim > 1}
        if sparse == "multi-head":
            names = ("attention.out", "merge_proj")
        chosen = [p.std().item() for n, p in named.items() if any(name in n for name in names)]
        assert chosen
        return chosen

    shallow = last(net(1, sparse, ReleasedLayout))
    deep = last(net(4, sparse, ReleasedLayout))
    for number, size in enumerate(deep):
        assert size == pytest.approx(shallow[number % len(shallow)] / 2, rel=0.1)


def test_positions_are_smaller_than_tokens():
    model = net(2, start=UnitStart(position=0.1))
    for embedding in (model.image_embedding, model.text_embedding):
        assert embedding.position.std().item() == pytest.approx(0.1, rel=0.1)
    assert model.text_embedding.token.weight.std().item() == pytest.approx(1, rel=0.1)
    with pytest.raises(ValueError, match="position is a standard deviation, so positive, got 0"):
        UnitStart(0.0)
