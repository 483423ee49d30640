"""Released decoders, the experts of every rank in a file of its own."""

import json
import re

import pytest
import torch
from torch import Tensor

import mhmoe_mm
from mhmoe_mm.checkpoint.__main__ import main
from mhmoe_mm.checkpoint.decoder import from_decoder, in_order_of_ranks, merged_ranks
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.released_decoder import from_released_layer, released_layer
from mhmoe_mm.moe.released import ReleasedLayer
from tests.checkpoint.test_import_command import write
from tests.models.test_released_decoder import ATTENTION_HEADS, DIM, HIDDEN, released_state

EXPERTS, LAYERS, VOCAB = 6, 4, 29
OPTIONS = ["--num-heads", str(ATTENTION_HEADS), "--top-k", "1", "--max-text", "11"]


def decoder(heads: int = 2) -> dict[str, Tensor]:
    """All tensors of a decoder, every second layer sparse."""
    draw = torch.Generator().manual_seed(5)
    weights = {
        "decoder.embed_tokens.weight": torch.randn(VOCAB, DIM, generator=draw),
        "decoder.layer_norm.weight": torch.rand(DIM, generator=draw) + 0.5,
    }
    weights["decoder.output_projection.weight"] = weights["decoder.embed_tokens.weight"]
    for layer in range(LAYERS):
        state = released_state(heads, EXPERTS if layer % 2 else None)
        for name, weight in state.items():
            noise = 0.1 * torch.randn(weight.shape, generator=draw)
            weights[f"decoder.layers.{layer}.{name}"] = weight.detach() + noise
    return weights


def by_rank(weights: dict[str, Tensor], ranks: int, shared: bool) -> list[dict[str, Tensor]]:
    """What each rank writes; with `shared`, all but the experts is a part of its own, the last."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    common = {name: weight for name, weight in weights.items() if ".experts." not in name}
    own = EXPERTS // ranks
    for name, weight in weights.items():
        if found := re.fullmatch(r"(.*experts\.)(\d+)(\..*)", name):
            number = int(found[2])
            parts[number // own][f"{found[1]}{number % own}{found[3]}"] = weight
    return [*parts, common] if shared else [common | part for part in parts]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@torch.no_grad()
def test_a_decoder_of_several_ranks_is_the_released_layers_one_after_another(
    heads, shared, tmp_path, tokenizer_path
):
    weights = decoder(heads)
    names = ["c-rank-0.pt", "c-rank-1.pt", "c-rank-2.pt"] + ["c-shared.pt"] * shared
    files = [
        write(tmp_path / name, part)
        for name, part in zip(names, by_rank(weights, 3, shared), strict=True)
    ]
    out = tmp_path / "ours"
    command = [*reversed(files), *OPTIONS, "--out", str(out), "--tokenizer", tokenizer_path]
    assert main(command) == 0
    net = mhmoe_mm.load(out).task.net
    assert isinstance(net, Decoder)
    token = torch.randint(VOCAB, (2, 9))
    x = weights["decoder.embed_tokens.weight"][token]
    rotation = net.positions.rotation(torch.arange(9).expand(2, 9))
    for number in range(LAYERS):
        prefix = f"decoder.layers.{number}."
        state = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        sparse = (
            ReleasedLayer(DIM, HIDDEN, heads, EXPERTS, 1, eval_share=1.0) if number % 2 else None
        )
        layer = released_layer(DIM, ATTENTION_HEADS, sparse, HIDDEN).eval()
        layer.load_state_dict(from_released_layer(state, ATTENTION_HEADS))
        x = layer(x, rotation, None, None, None)[0]
    x = torch.nn.functional.rms_norm(x, (DIM,), weights["decoder.layer_norm.weight"], 1e-5)
    torch.testing.assert_close(net(token).hidden, x, atol=1e-5, rtol=1e-4)
    config = json.loads((out / "config.json").read_text())["task"]["init_args"]["net"]["init_args"]
    assert config["sparse"]["init_args"]["num_heads"] == heads
    assert config["sparse_every"] == 2


def test_it_writes_texts(tmp_path, tokenizer_path, capsys):
    file, out = write(tmp_path / "a.pt", decoder()), str(tmp_path / "ours")
    assert main([file, *OPTIONS, "--out", out, "--tokenizer", tokenizer_path]) == 0
    assert "no capacity: nothing is dropped" in capsys.readouterr().out
    assert isinstance(mhmoe_mm.load(out).generate("a red", 3, seed=1), str)


def test_files_are_put_in_the_order_of_their_ranks():
    names = ["m-rank-10.pt", "m-rank-2.pt", "m-shared.pt"]
    assert in_order_of_ranks(names) == ["m-shared.pt", "m-rank-2.pt", "m-rank-10.pt"]
    assert in_order_of_ranks(["b.pt", "a.pt"]) == ["b.pt", "a.pt"]


def test_what_is_no_released_decoder_is_refused_by_name():
    weights, one = decoder(), torch.zeros(1)
    query = "decoder.layers.2.self_attn.q_proj.weight"
    refused = {
        "names that none has: 1 (decoder.embed_positions)": weights
        | {"decoder.embed_positions": one},
        "'lora_A.weight' is not a tensor": weights | {"decoder.layers.0.lora_A.weight": one},
        "has the layers [0, 1, 2, 3, 5], with gaps": weights
        | {"decoder.layers.5.self_attn.q_proj.weight": one},
        f"lacks 1 ({query})": {n: w for n, w in weights.items() if n != query},
        "has net.layers.2.attention.value.weight, as it is called here, of the shape (2": weights
        | {"decoder.layers.2.self_attn.v_proj.weight": torch.zeros(24, 25)},
        "choose among 6 experts, and 3 are there: give the files of all ranks": by_rank(
            weights, 2, False
        )[0],
        "decoder.output_projection.weight in a.pt is not decoder.embed_tokens.weight": weights
        | {"decoder.output_projection.weight": torch.zeros(VOCAB, DIM)},
    }
    for why, given in refused.items():
        with pytest.raises(ValueError, match=re.escape(why)):
            from_decoder(given, "a.pt", ATTENTION_HEADS, 1, 11)
    with pytest.raises(ValueError, match="has experts: how many of them read a token leaves"):
        from_decoder(weights, "a.pt", ATTENTION_HEADS)
    with pytest.raises(ValueError, match="width of 24: the number of heads leaves no trace"):
        from_decoder(weights, "a.pt", top_k=1)


def test_ranks_of_different_checkpoints_are_refused():
    first, second = by_rank(decoder(), 2, False)
    name = "decoder.layers.0.ffn.fc1.weight"
    with pytest.raises(ValueError, match=f"{name} is not the same in a and in b"):
        merged_ranks({"a": first, "b": second | {name: second[name] + 1}})
    hole = {n: w for n, w in second.items() if ".experts.1." not in n}
    with pytest.raises(ValueError, match=r"experts in b are numbered \[0, 2\], with gaps"):
        merged_ranks({"a": first, "b": hole})
