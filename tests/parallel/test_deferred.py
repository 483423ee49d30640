"""Networks that are never whole in one process; that they train alike is in `test_worlds`."""

from functools import partial

import pytest
import torch
from torch import nn

from mhmoe_mm.models.start import UnitStart
from mhmoe_mm.parallel import deferred as module
from mhmoe_mm.parallel.deferred import deferred, fill, is_deferred
from mhmoe_mm.tasks.retrieval import Retrieval
from tests.parallel.worlds import decoder, encoder

NETS = {"encoder": encoder, "decoder": decoder}


def real(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters() if not param.is_meta)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_a_deferred_network_has_shapes_and_becomes_the_one_that_is_built_at_once(build):
    torch.manual_seed(3)
    whole, after = build(lambda kind, *args, **options: kind(*args, **options)), torch.rand(())
    torch.manual_seed(3)
    net = build(deferred)
    assert torch.rand(()) == after  # heads that are built next start as they would
    assert is_deferred(net)
    blocks = [p for n, p in net.named_parameters() if n.split(".")[0] in ("blocks", "layers")]
    assert all(param.is_meta for param in blocks if param.ndim)
    assert [p.shape for p in net.parameters()] == [p.shape for p in whole.parameters()]

    state = torch.get_rng_state()
    fill(net, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert not is_deferred(net)
    for (name, param), expected in zip(net.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(param, expected), name
    for (name, buffer), expected in zip(net.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(buffer, expected), name


def test_no_more_than_a_block_has_memory_while_it_is_built(monkeypatch):
    made, held = [], []
    forget = module._forget

    def looked(block):
        held.append(sum(real(earlier) for earlier in made))
        made.append(block)
        forget(block)

    monkeypatch.setattr(module, "_forget", looked)
    decoder(deferred)
    assert len(made) == 3
    assert held == [0, 0, 0]


def test_what_fills_a_whole_network_is_refused():
    with pytest.raises(ValueError, match=r"UnitStart fills a network that is there as a whole"):
        encoder(partial(deferred, start=UnitStart()))
    task = Retrieval(encoder(deferred), init_from="weights.safetensors")
    with pytest.raises(ValueError, match=r"leave `deferred` of the strategy out, or `init_from`"):
        task.setup("fit")
