"""What a configuration comes to, from includes and overrides to what a checkpoint keeps."""

import copy
import csv
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from mhmoe_mm.command_line.command import Command
from tests.command_line.conftest import Outcome
from tests.command_line.standin import Hash, Toy

Built = Callable[..., Command]
Program = Callable[..., Outcome]


def shapes(task: Toy) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in task.state_dict().items()}


def test_a_net_is_included_by_a_path_relative_to_the_including_file(built: Built):
    assert built().model.net.dim == 6


def test_an_interpolation_follows_overrides_of_files_and_options(built: Built, folder: Path):
    (folder / "wide.yaml").write_text("model: {init_args: {net: {init_args: {dim: 10}}}}")
    assert built("--config", "wide.yaml").datamodule.dim == 10
    assert built("--config", "wide.yaml", "--model.net.dim", "14").datamodule.dim == 14
    assert built("--model.net.dim", "${data.init_args.workers}2").model.net.dim == 2


def test_options_and_files_win_in_the_order_written(built: Built, folder: Path):
    (folder / "wide.yaml").write_text("model: {net: {dim: 10}}")
    assert built("--model.net.dim", "14", "--config", "wide.yaml").model.net.dim == 10


@pytest.mark.parametrize(
    "options",
    [
        ["--model.net.layout.sparse", "null"],
        ["--model.net.layout.sparse=null"],
        ["--model.net.init_args.layout.init_args.sparse", "null"],
    ],
)
def test_null_on_the_command_line_takes_a_part_away(built: Built, options: list[str]):
    assert not [name for name in shapes(built(*options).model) if "router" in name]


def test_a_factory_two_levels_deep_makes_one_module_per_layer(built: Built):
    blocks = built("--model.net.layout.sparse.router.top_k", "3").model.net.blocks
    first, second = blocks[1].router, blocks[3].router
    assert (first.top_k, second.top_k) == (3, 3)
    assert first.gate.weight.shape == (5, 3)
    assert first.gate.weight is not second.gate.weight


def test_a_class_is_swapped_by_its_name_alone(built: Built):
    router = "--model.net.layout.sparse.router"
    made = built(router, "Hash", f"{router}.salt", "9").model.net.blocks[1].router
    assert isinstance(made, Hash)
    assert made.salt == 9


def test_copies_and_workers_do_not_carry_the_command(built: Built):
    task = built().model
    assert shapes(copy.deepcopy(task)) == shapes(task)
    factory = pickle.loads(pickle.dumps(task.net.layout.sparse))
    assert factory(10).merge.weight.shape == (10, 10)


def test_a_checkpoint_rebuilds_its_task_from_plain_values(program: Program, folder: Path):
    assert program("fit", "--model.net.layout.sparse.router", "Hash").status == 0
    path = folder / "runs/toy/version_0/checkpoints/last.ckpt"
    stored = torch.load(path, weights_only=True)
    assert yaml.safe_load(yaml.safe_dump(stored["hyper_parameters"])) == stored["hyper_parameters"]
    task = Toy.load_from_checkpoint(path, weights_only=True)
    assert isinstance(task.net.blocks[3].router, Hash)
    for name, value in task.state_dict().items():
        assert torch.equal(value, stored["state_dict"][name])


def test_a_run_keeps_its_results_in_one_numbered_folder(program: Program, folder: Path):
    for number in range(2):
        assert program("fit").status == 0
        run = folder / f"runs/toy/version_{number}"
        assert {path.name.partition(".tfevents")[0] for path in run.iterdir()} == {
            "checkpoints", "config.yaml", "events.out", "hparams.yaml", "metrics.csv",
        }  # fmt: skip
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        assert sum(row["train/square"] != "" for row in rows) == 2
        last = run / "checkpoints/last.ckpt"
        assert last.resolve() == run / "checkpoints/step-000002.ckpt"


def test_the_saved_configuration_runs_again(program: Program, built: Built, folder: Path):
    program("fit", "--model.net.dim", "10", "--model.net.layout.sparse", "null")
    saved = str(folder / "runs/toy/version_0/config.yaml")
    assert shapes(built("--config", saved).model) == shapes(
        built("--model.net.dim", "10", "--model.net.layout.sparse", "null").model
    )


def test_secrets_of_the_environment_are_not_written(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MHMOE_TEST_TOKEN", "correct-horse")
    (folder / "secret.yaml").write_text("data: {init_args: {token: '${oc.env:MHMOE_TEST_TOKEN}'}}")
    assert program("fit", "--config", "secret.yaml").status == 0
    written = [path for path in (folder / "runs/toy").rglob("*") if path.is_file()]
    assert len(written) > 4
    assert not [path for path in written if b"correct-horse" in path.read_bytes()]
    saved = yaml.safe_load((folder / "runs/toy/version_0/config.yaml").read_text())
    assert saved["data"]["init_args"]["token"] == "${oc.env:MHMOE_TEST_TOKEN}"


def test_what_the_user_gives_replaces_the_defaults(program: Program, folder: Path):
    outcome = program(
        "fit",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
    )
    assert (outcome.status, outcome.out) == (0, "")
    assert not (folder / "runs/toy").exists()
    assert program("fit", "--trainer.fast_dev_run=true").status == 0
    assert not (folder / "runs/toy").exists()
    assert not (folder / "runs/checkpoints").exists()
