"""A dense checkpoint becomes a sparse model that answers as it did, and can be trained on."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import instantiate_module
from torch import nn

import mhmoe_mm
from mhmoe_mm.checkpoint import load_weights
from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.storage.sealed import save_sealed
from tests.trained import NET, Trained
from tools.upcycle import main


def changed(sparse: dict | None) -> dict:
    """The net of the tests with another kind of sparse layer, or none."""
    net = copy.deepcopy(NET)
    layout = net["init_args"]["layout"]["init_args"]
    layout["sparse"] = sparse
    layout["dense"]["init_args"] = {"hidden": 28, "sub_norm": False}
    return net


def spec(kind: str, experts: int, hidden: int, **router) -> dict:
    return {
        "class_path": f"mhmoe_mm.moe.{kind}",
        "init_args": {
            "num_experts": experts,
            "router": {"class_path": "mhmoe_mm.moe.TopKRouter", "init_args": router},
            "experts": {"class_path": "mhmoe_mm.moe.GeluExperts", "init_args": {"hidden": hidden}},
        },
    }


def made(net: dict) -> nn.Module:
    return instantiate_module(nn.Module, {"_class_path": net["class_path"], **net["init_args"]})


@pytest.fixture
def dense(trained: Callable[[str], Trained], tmp_path: Path) -> tuple[Path, Trained]:
    """A checkpoint of a dense network that answers questions."""
    source = trained("vqa")
    content = dict(read_any(source.checkpoint))
    net = changed(None)
    torch.manual_seed(1)
    weights = made(net).state_dict()
    for weight in weights.values():
        weight.add_(0.2 * torch.randn_like(weight))
    heads = {n: w for n, w in content["state_dict"].items() if not n.startswith("net.")}
    content["state_dict"] = heads | {f"net.{name}": w for name, w in weights.items()}
    content["hyper_parameters"] = content["hyper_parameters"] | {"net": net}
    save_sealed(content, tmp_path / "dense.ckpt")
    return tmp_path / "dense.ckpt", source


def run(folder: Path, checkpoint: Path, net: dict, *options: str) -> int:
    (folder / "net.yaml").write_text(yaml.safe_dump(net))
    command = [str(checkpoint), "--net", str(folder / "net.yaml"), "--out", str(folder / "out")]
    return main([*command, *options])


def test_the_sparse_model_answers_as_the_dense_one_did(dense, tmp_path, capsys):
    checkpoint, source = dense
    net = changed(spec("SparseMoE", 6, 14, top_k=2, renormalize=True))
    assert run(tmp_path, checkpoint, net) == 0
    said = capsys.readouterr().out
    assert "blocks.1.ffn.shared: SparseMoE, relative error " in said
    image = source.images(source.batches()[0])[0]
    answers = [
        mhmoe_mm.load(path).answer(image, "is the red star", top=5)
        for path in (checkpoint, tmp_path / "out")
    ]
    assert [name for name, _ in answers[0]] == [name for name, _ in answers[1]]
    for (_, one), (_, other) in zip(*answers, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert run(tmp_path, checkpoint, net) == 2
    assert "exists already" in capsys.readouterr().err
    # An export is as good a source as a checkpoint.
    (tmp_path / "again").mkdir()
    assert run(tmp_path / "again", tmp_path / "out", changed(spec("SparseMoE", 4, 28))) == 2
    assert "nothing to turn" in capsys.readouterr().err


def test_training_starts_from_it_with_every_weight(dense, tmp_path, capsys):
    checkpoint, source = dense
    net = changed({**spec("MHMoE", 8, 9, top_k=2)})
    assert run(tmp_path, checkpoint, net, "--seed", "3") == 0
    error = float(capsys.readouterr().out.split("relative error ")[1].split()[0])
    assert 0.05 < error < 1
    task = source.task()
    task.net = made(net)
    report = load_weights(task, tmp_path / "out")
    assert (report.missing, report.unexpected) == ([], [])


def test_what_cannot_be_is_said_in_a_sentence(dense, tmp_path, capsys):
    checkpoint, _ = dense
    cases = [
        (changed(spec("SparseMoE", 6, 9)), (), "neither copies nor slices"),
        (changed(spec("SparseMoE", 6, 28)), ("--noise", "-1"), "0 or more"),
        ({"init_args": {}}, (), "has no class_path"),
    ]
    for net, options, said in cases:
        assert run(tmp_path, checkpoint, net, *options) == 2
        assert said in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "nowhere.ckpt", changed(None)) == 2
    assert "No such checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
