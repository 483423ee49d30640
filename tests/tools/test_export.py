"""The command says what it made, or why it cannot."""

from pathlib import Path

import pytest
import torch
import yaml

import mhmoe_mm
from mhmoe_mm.command_line.program import run
from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.storage.sharded import is_sharded
from mhmoe_mm.tasks.base import Task
from tests.language import LINE, write_run
from tests.reliability.processes import started
from tests.trained import configuration
from tools.export import main


def test_it_says_what_it_wrote(language_run, tmp_path, capsys):
    out = tmp_path / "model"
    assert main([str(language_run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: LanguageModeling at step 100, 17,481 parameters, 17,090 of them active" in said
    assert main([str(language_run), "--out", str(out)]) == 2
    assert (
        "model exists already: name a new folder, or replace it with --overwrite"
        in capsys.readouterr().err
    )
    assert main([str(language_run), "--out", str(out), "--overwrite"]) == 0
    assert main(["nowhere", "--out", str(tmp_path / "b")]) == 2
    assert "No such checkpoint: nowhere" in capsys.readouterr().err


def test_an_old_checkpoint_takes_its_tokenizer(trained, tmp_path):
    made = trained("vqa")
    content = torch.load(made.checkpoint, weights_only=True)
    del content["texts"]
    torch.save(content, tmp_path / "old.ckpt")
    tokenizer = str(made.moved / "tokenizer.json")
    command = [str(tmp_path / "old.ckpt"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert main([*command, "--tokenizer", tokenizer]) == 0
    assert mhmoe_mm.load(tmp_path / "out").texts is not None


def test_an_evaluation_takes_it_as_weights_to_start_from(trained, tmp_path, capsys):
    made = trained("nlvr2")
    assert main([str(made.run), "--out", str(tmp_path / "model")]) == 0
    config = configuration(made.kind, made.moved)
    config["data"]["init_args"]["val"]["shards"] = str(made.moved.parent / "shards")
    config["data"]["init_args"]["train"] = None
    config["trainer"]["default_root_dir"] = str(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = ["validate", "--config", str(tmp_path / "run.yaml")]
    figures = []
    for weights in (made.checkpoint, tmp_path / "model", tmp_path / "model/model.safetensors"):
        assert run([*command, "--model.init_from", str(weights)], Task) == 0
        table = capsys.readouterr().out
        figures.append([line for line in table.splitlines() if "val/loss" in line])
    assert figures[0] == figures[1] == figures[2] != []
    assert run([*command, "--ckpt_path", str(tmp_path / "model")], Task) != 0
    assert "weights without a training to restore: give it to" in capsys.readouterr().err


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_two_ranks_wrote_with_their_experts_apart_is_one_file(tmp_path: Path):
    path = write_run(tmp_path, [LINE] * 31)
    config = yaml.safe_load(path.read_text())
    net = config["model"]["init_args"]["net"]["init_args"]
    net["sparse"]["init_args"]["num_experts"] = 6
    strategy = {
        "class_path": "mhmoe_mm.parallel.strategy.FSDP2",
        "init_args": {"expert_parallel": 2},
    }
    config["trainer"] |= {"max_steps": 3, "strategy": strategy}
    path.write_text(yaml.safe_dump(config))
    started(path, "ranks", 2).finish()
    folder = tmp_path / "runs/ranks/version_0"
    assert is_sharded(folder / "checkpoints/last.ckpt")
    assert len(list((folder / "checkpoints/last.ckpt").glob("*.distcp"))) == 2
    assert main([str(folder), "--out", str(tmp_path / "model")]) == 0
    kept = read_any(folder / "checkpoints/last.ckpt")["state_dict"]
    model, before = mhmoe_mm.load(tmp_path / "model"), mhmoe_mm.load(folder)
    weights = model.task.state_dict()
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weight, kept[name]) for name, weight in weights.items())
    assert model.log_likelihood(LINE) == before.log_likelihood(LINE)
