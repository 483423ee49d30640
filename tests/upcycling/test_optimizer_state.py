"""The optimizer's state through the programs: a dense fit, its upcycling, a sparse fit that goes
on.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mhmoe_mm
from mhmoe_mm.command_line.program import build, run
from mhmoe_mm.storage.checkpoint_io import OPTIMIZER, read_any
from mhmoe_mm.storage.exported import read_exported
from mhmoe_mm.storage.sealed import Damaged, save_sealed
from mhmoe_mm.storage.sharded import save_sharded
from mhmoe_mm.tasks.base import Task
from tests.ranks import run_on_two_ranks
from tests.tools.test_upcycle import changed, spec
from tests.trained import KINDS, Trained, configuration
from tools.upcycle import main

SPARSE = changed(spec("SparseMoE", 4, 28, top_k=2, renormalize=True))
LAYERED = {"class_path": "mhmoe_mm.optim.AdamW", "init_args": {"layer_decay": 0.7}}
"""Its groups have the parameters in another order than the network."""
State = dict[str, dict[str, torch.Tensor]]


class Dense(NamedTuple):
    """A project whose dense net has been trained for three steps."""

    folder: Path
    state: State
    """Of the optimizer, by names, as the training left it."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "runs/dense/version_0/checkpoints/last.ckpt"

    def arguments(self, *options: str) -> list[str]:
        return ["fit", "--config", str(self.folder / "run.yaml"), *options]

    def sparse(self, *options: str) -> list[str]:
        """Of a training of the sparse net, for two steps."""
        net = ["--model.net", str(self.folder / "sparse.yaml"), "--trainer.max_steps", "2"]
        return self.arguments(*net, *options)

    def upcycle(self, out: str, checkpoint: Path | None = None) -> int:
        net = ["--net", str(self.folder / "sparse.yaml"), "--out", str(self.folder / out)]
        return main([str(checkpoint or self.checkpoint), *net, "--optimizer-state"])


def fitted(arguments: list[str]) -> State:
    """The optimizer's state by names, after a fit; empty for what no step has used."""
    command = build(arguments, Task)
    command.execute()
    state = command.trainer.optimizers[0].state
    return {name: dict(state[param]) for name, param in command.model.named_parameters()}


@pytest.fixture(scope="module")
def dense(trained: Callable[[str], Trained], tmp_path_factory: pytest.TempPathFactory) -> Dense:
    source, folder = trained("vqa"), tmp_path_factory.mktemp("dense")
    (folder / "shards").symlink_to(source.moved.parent / "shards")
    for name in ("tokenizer.json", "answers.json"):
        (folder / name).write_bytes((source.moved / name).read_bytes())
    config = configuration(KINDS["vqa"], folder)
    config["model"]["init_args"] |= {"net": changed(None), "optimizer": LAYERED}
    config["trainer"]["limit_val_batches"] = 0
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "sparse.yaml").write_text(yaml.safe_dump(SPARSE))
    made = Dense(folder, {})
    state = fitted(made.arguments("--name", "dense"))
    return made._replace(state={name: of for name, of in state.items() if of})


@pytest.fixture(scope="module")
def out(dense: Dense) -> Path:
    assert dense.upcycle("out") == 0
    return dense.folder / "out"


def held(folder: Path, name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "optimizer.safetensors")
    return {what: tensors[f"{what}/{name}"] for what in ("exp_avg", "exp_avg_sq", "step")}


def test_the_folder_holds_the_moments_of_all_that_was_copied(dense, out):
    names = {name.partition("/")[2] for name in load_file(out / "optimizer.safetensors")}
    copied = {name for name in dense.state if ".ffn." not in name or "blocks.0" in name}
    assert copied < names
    for name in copied:
        for what, value in held(out, name).items():
            assert torch.equal(value, dense.state[name][what]), name
    place = "net.blocks.1.ffn.shared."
    made = held(out, f"{place}experts.w_out")["exp_avg"]
    assert all(torch.equal(e.T, dense.state[f"{place}down.weight"]["exp_avg"]) for e in made)
    assert "optimizer.safetensors" in json.loads((out / "config.json").read_text())["files"]
    assert "moments of AdamW" in (out / "README.md").read_text()
    mhmoe_mm.load(out)


def test_a_fit_goes_on_with_them_and_says_for_how_many(dense, out, said):
    start = ("--model.init_from", str(out))
    state = fitted(dense.sparse(*start, "--name", "sparse"))
    steps = {name: int(of["step"]) for name, of in state.items() if of}
    assert set(steps.values()) == {2, 5}
    kept = {name for name, step in steps.items() if step == 5}
    assert {n.rpartition(".router.")[2] for n in steps.keys() - kept} == {"scorer.weight"}
    line = (
        f"optimizer's state from {out}: {len(kept)} of {len(state)} parameters go on with theirs, "
        f"{len(state) - len(kept)} start fresh"
    )
    assert [r.getMessage() for r in said.records].count(line) == 1
    # What is restored wins, and an evaluation makes no optimizer.
    said.clear()
    last = dense.folder / "runs/sparse/version_0/checkpoints/last.ckpt"
    more = ("--trainer.max_steps", "3", "--ckpt_path", str(last), "--name", "more")
    again = fitted(dense.sparse(*start, *more))
    assert {name: int(of["step"]) - 1 for name, of in again.items() if of} == steps
    assert (
        run(["validate", *dense.sparse(*start)[1:], "--trainer.limit_val_batches", "1"], Task) == 0
    )
    assert not [r for r in said.records if "optimizer's state" in r.getMessage()]


def test_weights_alone_start_fresh_and_other_optimizers_are_refused(dense, out, capsys):
    state = fitted(dense.sparse("--model.init_from", str(out / "model.safetensors")))
    assert {int(of["step"]) for of in state.values() if of} == {2}
    sgd = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    assert run(dense.sparse("--model.init_from", str(out), *sgd), Task) != 0
    assert "SGD as it is set keeps another: choose" in capsys.readouterr().err


def test_a_changed_file_is_noticed(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    content = bytearray((copy / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "optimizer.safetensors").write_bytes(content)
    with pytest.raises(Damaged, match=r"optimizer\.safetensors is not what was exported"):
        read_exported(copy)


def test_shards_have_it_by_names(dense, out, tmp_path):
    content = dict(read_any(dense.checkpoint))
    del content["optimizer_states"]
    weights = {"state_dict": content.pop("state_dict")}
    group = {"params": list(dense.state), "lr": 0.1}
    state = {OPTIMIZER.format(0): {"state": dense.state, "param_groups": [group]}}
    save_sharded(weights | state, content, tmp_path / "shards.ckpt")
    assert dense.upcycle("of_shards", tmp_path / "shards.ckpt") == 0
    found = load_file(dense.folder / "of_shards/optimizer.safetensors")
    wanted = load_file(out / "optimizer.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_has_no_such_state_is_refused(dense, out, tmp_path, capsys):
    content = dict(read_any(dense.checkpoint))
    states = content.pop("optimizer_states")

    def refused(path: Path, said: str) -> None:
        assert dense.upcycle("refused", path) == 2
        assert said in capsys.readouterr().err
        assert not (dense.folder / "refused").exists()

    def changed_to(states: list) -> Path:
        save_sealed(content | {"optimizer_states": states}, tmp_path / "other.ckpt")
        return tmp_path / "other.ckpt"

    refused(out, "holds no optimizer's state")
    refused(changed_to([]), "name a checkpoint of the training")
    momentum = {n: {"momentum_buffer": of["exp_avg"]} for n, of in states[0]["state"].items()}
    said = "keeps momentum_buffer and no exp_avg or exp_avg_sq or step: only AdamW's"
    refused(changed_to([states[0] | {"state": momentum}]), said)
    one = {"params": [n for group in states[0]["param_groups"] for n in group["params"]]}
    refused(changed_to([states[0] | {"param_groups": [one]}]), "other groups of parameters")
    swapped = dict(zip(states[0]["state"], reversed(states[0]["state"].values()), strict=True))
    refused(changed_to([states[0] | {"state": swapped}]), "that is not of its weights")
    weights = {"state_dict": content["state_dict"]}
    rest = {name: value for name, value in content.items() if name != "state_dict"}
    save_sharded(weights, rest, tmp_path / "bare.ckpt")
    refused(tmp_path / "bare.ckpt", "holds no optimizer's state")


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_share_the_state_out_as_they_do_the_parameters(dense, out):
    said = run_on_two_ranks("tests.upcycling.state_on_ranks", dense.folder)
    assert "parameters go on with theirs, 2 start fresh" in said
