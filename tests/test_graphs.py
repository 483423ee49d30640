"""Graphs say what the model says, for any batch and any length of text."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file

from mhmoe_mm.graph_folder import export_graphs
from mhmoe_mm.graphs import CHECKED_BATCHES, TOLERANCE, export_graph
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.moe import (
    AutoBackend,
    ExpertChoiceRouter,
    GeluExperts,
    GShardRouter,
    MHMoE,
    SparseMoE,
    SwiGLUExperts,
    TopKRouter,
    XMoEScorer,
)
from tests.checkpoint.released import drawn
from tools.export import main

SPARSE = {
    "dense": None,
    "SparseMoE": partial(
        SparseMoE,
        num_experts=3,
        router=partial(TopKRouter, top_k=1),
        experts=partial(GeluExperts, hidden=13, sub_norm=True),
    ),
    "MH-MoE": partial(
        MHMoE,
        num_heads=2,
        num_experts=5,
        router=partial(TopKRouter, scorer=XMoEScorer),
        experts=partial(SwiGLUExperts, hidden=7),
        shared=partial(GeluFFN, hidden=11),
    ),
}
SIZE, LONGEST = 20, 13


@pytest.fixture(autouse=True)
def _without_shape_checks() -> Iterator[None]:
    """The checks of shapes under pytest take the symbols of a tracer for wrong numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def net_of(sparse) -> BEiT3:
    torch.manual_seed(0)
    layout = ReleasedLayout(partial(GeluFFN, hidden=29), sparse, sparse_every=1)
    return BEiT3(layout, SIZE, 5, 43, 28, 1, 2, max_text=LONGEST).eval()


def given(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(7 * batch + length)
    pixel = torch.randint(256, (batch, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)
    token = torch.randint(43, (batch, length), generator=draw)
    return pixel, token, torch.arange(length) >= torch.randint(1, length + 1, (batch, 1))


def expected(net: BEiT3, pixel, token, pad) -> torch.Tensor:
    return net((pixel.float() / 255 - 0.5) / 0.5, token, pad).hidden


@pytest.mark.parametrize(
    ("name", "kind"),
    [("MH-MoE", "torch"), *(pytest.param(n, "onnx", marks=pytest.mark.slow) for n in SPARSE)],
)
@torch.no_grad()
def test_graphs_equal_the_network_at_other_batches_and_lengths(name, kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    net, file = net_of(SPARSE[name]), tmp_path / f"pair.{kind}"
    backend = None if name == "dense" else "every"
    checked = export_graph("pair", net, None, kind, backend, file)
    assert checked.difference < TOLERANCE
    assert checked.batches == list(CHECKED_BATCHES)
    assert checked.lengths == [2, 6, 13]
    run = opened(file, kind)
    for batch, length in ((1, 2), (4, 7), (7, LONGEST)):
        inputs = given(batch, length)
        torch.testing.assert_close(
            run(*inputs), expected(net, *inputs), atol=TOLERANCE, rtol=TOLERANCE
        )
    for module in net.modules():
        if hasattr(module, "backend"):
            assert isinstance(module.backend, AutoBackend)


def opened(file: Path, kind: str):
    if kind == "torch":
        return torch.export.load(file).module()
    session = pytest.importorskip("onnxruntime").InferenceSession(file)

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        feed = {name: x.numpy() for name, x in zip(("pixel", "token", "pad"), inputs, strict=True)}
        return torch.from_numpy(session.run(["hidden"], feed)[0])

    return run


@pytest.mark.slow
def test_sparse_layers_need_a_backend_and_routers_that_have_no_graph_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 2 sparse layers.*--backend every computes all"):
        export_graph("pair", net_of(SPARSE["MH-MoE"]), None, "torch", None, tmp_path / "a.pt2")
    refused = {
        partial(GShardRouter, second="random"): "differs from the model by .*draws at random",
        ExpertChoiceRouter: "text cannot be exported",
    }
    for router, why in refused.items():
        sparse = partial(SparseMoE, router=router, experts=partial(GeluExperts, hidden=13))
        with pytest.raises(ValueError, match=why):
            export_graph("text", net_of(sparse), None, "torch", "every", tmp_path / "a.pt2")


@torch.no_grad()
def test_a_models_own_parts_come_with_tokenizer_and_names(trained, tmp_path, capsys):
    out = tmp_path / "graphs"
    command = [str(trained("retrieval").run), "--out", str(out), "--format", "torch"]
    assert main(command) == 2
    assert "--backend every" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--backend", "every"]) == 0
    said = capsys.readouterr().out
    assert "embed_image.pt2: pixel -> vector; differs from the model by " in said
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "embed_image.pt2", "embed_text.pt2", "graph.json", "tokenizer.json",
    ]  # fmt: skip
    import mhmoe_mm

    task = mhmoe_mm.load(trained("retrieval").run).task
    pixel = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    found = torch.export.load(out / "embed_image.pt2").module()(pixel)
    torch.testing.assert_close(found, task.embed_image(pixel)[0], atol=1e-5, rtol=1e-4)
    about = json.loads((out / "graph.json").read_text())
    assert about["scale"] == pytest.approx(task.logit_scale.exp().item())
    assert about["max_tokens"] == 9
    assert about["parts"]["embed_text"]["inputs"]["pad"]["shape"] == ["batch", "seq"]
    assert main([*command, "--backend", "every"]) == 2
    assert "exists already" in capsys.readouterr().err
    (out / "notes.txt").touch()
    assert main([*command, "--backend", "every", "--overwrite"]) == 2
    assert "holds notes.txt" in capsys.readouterr().err
    assert main([*command[:2], str(tmp_path / "b"), *command[3:], "--part", "answer"]) == 2
    assert "answer is a part of VQA models, and this is Retrieval" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_in_onnx(trained, tmp_path):
    pytest.importorskip("onnxscript")
    about = export_graphs(trained("vqa").run, tmp_path / "out", "onnx", backend="every")
    assert list(about["parts"]) == ["answer"]
    assert about["parts"]["answer"]["checked"]["difference"] < TOLERANCE
    assert (tmp_path / "out/answers.json").exists()


def test_language_models_have_no_graph(language_run, tmp_path):
    with pytest.raises(ValueError, match="graphs are made of multiway encoders"):
        export_graphs(language_run, tmp_path / "out", "torch")


def test_an_imported_backbone_has_graphs_too(tmp_path):
    from mhmoe_mm.checkpoint.__main__ import main as import_main

    weights = drawn("base", "backbone")
    few = {name: w for name, w in weights.items() if ".layers." not in name or ".layers.0." in name}
    save_file(few, tmp_path / "a.safetensors")
    ours = tmp_path / "ours"
    command = [str(tmp_path / "a.safetensors"), "--num-heads", "2", "--out", str(ours)]
    assert import_main([*command, "--image-size", "32"]) == 0
    export_graphs(ours, tmp_path / "out", "torch", ["text"])
    run = torch.export.load(tmp_path / "out/text.pt2").module()
    token, pad = torch.randint(53, (3, 5)), torch.zeros(3, 5, dtype=torch.bool)
    layout = ReleasedLayout(partial(GeluFFN, hidden=24))
    net = BEiT3(layout, 32, 16, 53, 6, 1, 2).eval()
    kept = load_file(ours / "model.safetensors").items()
    net.load_state_dict({name.removeprefix("net."): weight for name, weight in kept})
    torch.testing.assert_close(run(token, pad), net(None, token, pad).hidden)
