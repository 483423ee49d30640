"""The command, from a trained run to its files: the same numbers everywhere, and sentences."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from mhmoe_mm.callbacks.expert_activation import ExpertActivation
from mhmoe_mm.callbacks.routing_dump import RoutingDump
from mhmoe_mm.command_line.program import build
from mhmoe_mm.tasks.base import Task
from tests.callbacks.recount import logged, recount
from tests.language import LINE
from tests.tools.routing import LAYERS, PIECES, chunk
from tests.trained import Trained, configuration
from tools.expert_report.analysis import Analysis
from tools.expert_report.cli import main
from tools.expert_report.contents import RunContents
from tools.expert_report.contents_json import read_contents, write_contents
from tools.expert_report.training import curves, history


@pytest.fixture(scope="module")
def made(trained: Callable[[str], Trained]) -> Trained:
    return trained("vqa")


def data_of(made: Trained, folder: Path) -> Path:
    """A configuration whose data are where they were moved."""
    config = configuration(made.kind, made.moved)
    for split in ("train", "val"):
        config["data"]["init_args"][split]["shards"] = str(made.moved.parent / "shards")
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"data": config["data"], "model": config["model"]}))
    return path


@pytest.fixture(scope="module")
def reported(made, tmp_path_factory) -> tuple[Path, RunContents]:
    folder = tmp_path_factory.mktemp("reported")
    options = ["--config", str(data_of(made, folder)), "--json", str(folder / "a.json")]
    options += ["--dump", str(folder / "raw.npz"), "--out", str(folder / "a.html")]
    assert main([str(made.run), *options]) == 0
    (contents,) = read_contents(folder / "a.json")
    return folder, contents


def test_the_report_the_dump_and_the_callback_count_the_same(made, reported, tmp_path):
    folder, contents = reported
    argv = ["validate", "--config", str(data_of(made, tmp_path)), "--ckpt_path"]
    argv += [str(made.checkpoint), "--trainer.default_root_dir", str(tmp_path)]
    argv += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    command = build(argv, Task)
    command.trainer.callbacks += [ExpertActivation(), RoutingDump()]
    command.execute()
    # An evaluation on its own is named by the steps that its checkpoint was trained.
    kept = Path(command.trainer.log_dir) / "routing/val-00000003"
    assert recount(kept) == recount(folder)
    lines = Path(command.trainer.log_dir) / "experts.jsonl"
    assert recount(folder) == logged(lines)
    events = {line["layer"]: line for line in map(json.loads, lines.read_text().splitlines())}
    assert [layer.name for layer in contents.layers] == list(events)
    for layer in contents.layers:
        own = events[layer.name]["kinds"]
        for counts in layer.counts:
            if counts.kind in own and counts.dimension in ("all", "modality"):
                told = own[counts.kind]
                assert (list(counts.count), counts.tokens) == (told["count"], told["tokens"])
                assert counts.use.activation == pytest.approx(told["activation"], abs=1e-6)
                assert counts.random.dead == pytest.approx(told["random"]["dead"], abs=1e-6)
                assert counts.use.entropy_share == pytest.approx(told["entropy_share"], abs=1e-6)
                sweep = list(told["sweep"].values())
                assert list(counts.use.sweep) == pytest.approx(sweep, abs=1e-6)
    gate = contents.gates[0]
    assert gate.entropy_share == pytest.approx(events[gate.layer]["router_entropy_share"], abs=1e-5)
    assert gate.balance == pytest.approx(events[gate.layer]["balance"], abs=1e-5)


def test_a_report_on_the_dump_is_that_on_the_run(reported):
    folder, contents = reported
    out = folder / "again.json"
    assert main([str(folder / "raw.npz"), "--json", str(out)]) == 0
    (again,) = read_contents(out)
    fields = ("layers", "activation", "heads_together", "specialisation", "words", "experts")
    for field in (*fields, "gates"):
        assert getattr(again, field) == getattr(contents, field), field
    # Questions are not masked, so what was recorded is how an example is read.
    shown = {one.key: one for one in contents.sentences}
    both = [one for one in again.sentences if one.key in shown]
    assert both
    assert both == [shown[one.key] for one in both]
    pictures = {one.key: one for one in contents.images}
    seen = [one for one in again.images if one.key in pictures]
    assert seen
    for one in seen:
        first = pictures[one.key]
        assert one._replace(steps=(), text="") == first._replace(steps=(), text="")
        assert one.steps == first.steps[-1:]


def test_examples_are_read_as_a_batch_is(made, reported):
    """What the page shows of a token is what its row of the batch was routed to, unmasked."""
    _, contents = reported
    task = made.task().eval()
    batch = made.batches()[0]
    plans = {}
    for name, module in task.net.named_modules():
        if name.endswith("router"):
            module.register_forward_hook(lambda m, a, out, n=name: plans.__setitem__(n, out[0]))
    with torch.no_grad():
        task.losses(batch)
    (plan,) = plans.values()
    seq = 1 + task.net.image_embedding.num_patches + batch.token.shape[1]
    table = plan.expert.view(len(batch.key), seq, 2, 2)
    split = 1 + task.net.image_embedding.num_patches
    rows = {key: row for row, key in reversed(list(enumerate(batch.key)))}
    checked = 0
    for image in contents.images:
        if image.key in rows and len(set(batch.key)) == len(batch.key):
            checked += 1
            expected = table[rows[image.key], 1:split].tolist()
            assert [[list(h) for h in patch] for patch in image.experts[0]] == expected
            distinct = [len({e for head in patch for e in head}) for patch in expected]
            assert list(image.diversity[0]) == distinct
            assert list(image.steps[-1].diversity) == distinct
    for sentence in contents.sentences:
        if sentence.key in rows and len(set(batch.key)) == len(batch.key):
            checked += 1
            row = table[rows[sentence.key], split:]
            for token, expected in zip(sentence.tokens, row.tolist(), strict=False):
                assert [list(head) for head in token.experts[0]] == expected
    assert contents.images
    assert contents.sentences
    assert checked or len(set(batch.key)) < len(batch.key)


def test_a_language_model_is_reported_with_its_words(language_run, tmp_path, capsys):
    text = (language_run / "config.yaml").read_text().replace("/made", "/moved")
    config = tmp_path / "moved.yaml"
    config.write_text(text)
    out, words = tmp_path / "a.json", tmp_path / "words.txt"
    words.write_text("much\nnever\n")
    options = ["--json", str(out), "--words", str(words), "--config", str(config)]
    assert main([str(language_run), *options]) == 0
    (contents,) = read_contents(out)
    assert contents.words is not None
    found = {word.word: word for word in contents.words.frequent}
    assert found.keys() == set(LINE.split())
    assert [word.word for word in contents.words.listed] == ["much"]
    assert contents.words.missing == ("never",)
    assert found["much"].pieces == 4  # a model of letters
    assert contents.images == ()
    assert contents.patches is None
    assert contents.summary.step == contents.curves[0].steps[-1] + 1
    said = capsys.readouterr().out
    assert "90.71%" in said
    assert "half of an even share" in said
    second = tmp_path / "b.json"
    assert main([str(out), str(out), "--json", str(second)]) == 0
    assert [one.summary.name for one in read_contents(second)] == ["unnamed (1)", "unnamed (2)"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nowhere", "--json", "x"], "There is no nowhere"),
        (["{run}"], "Nothing is to be written"),
        (["{run}", "{run}", "--dump", "a.npz"], "--dump writes the routing of one run"),
        (["{run}", "--dump", "a.csv"], r"--dump writes .npz or .parquet, not a.csv"),
        (["{run}", "--json", "x", "--tau", "3"], "--tau is a frequency"),
        (["{run}", "--json", "x", "--words", "gone"], "gone cannot be read as a list of words"),
        (["{run}", "--json", "x", "--config", "gone"], "gone cannot be read as a configuration"),
        (["{run}", "--json", "x", "--split", "test"], "has no data.test"),
        (["{run}", "--json", "x", "--batches", "0"], "--batches is a number, 1 or more"),
    ],
)
def test_what_is_wrong_is_one_sentence(made, argv, sentence, capsys):
    assert main([part.format(run=made.run) for part in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("expert_report: error: ")
    assert sentence in said


def test_a_dense_network_has_no_report(made, tmp_path, capsys):
    checkpoint = torch.load(made.checkpoint, weights_only=True)
    layout = checkpoint["hyper_parameters"]["net"]["init_args"]["layout"]["init_args"]
    layout["sparse"] = None
    state = checkpoint["state_dict"]
    names = [name for name in state if ".ffn.shared.experts" in name or ".moe." in name]
    assert names
    path = tmp_path / "dense.ckpt"
    torch.save({**checkpoint, "state_dict": {}}, path)
    assert main([str(path), "--json", str(tmp_path / "x")]) == 2
    assert "cannot be built here" in capsys.readouterr().err


def test_contents_survive_json(tmp_path):
    analysis = Analysis(LAYERS, PIECES, tau=0.1)
    analysis.add(chunk(0))
    summary = analysis.summary("a", "b", "c", None, None, "d")
    contents = analysis.contents(summary)
    write_contents([contents, contents], tmp_path / "a.json")
    assert read_contents(tmp_path / "a.json") == [contents, contents]
    (tmp_path / "b.json").write_text('[{"version": 99}]')
    with pytest.raises(ValueError, match="in version 1"):
        read_contents(tmp_path / "b.json")


def test_the_history_is_that_of_the_run_and_a_repeated_step_counts_once(made, tmp_path):
    line = {
        "stage": "train", "step": 5, "layer": "b", "balance": 1.0, "router_entropy_share": 0.5,
        "kinds": {"image": {
            "load_share": [0.25, 0.75], "activation": 1.0, "entropy_share": 0.8, "dead": 0,
            "max_over_mean": 1.5, "dropped_share": 0.0, "random": {"activation": 1.0},
        }},
    }  # fmt: skip
    later = json.loads(json.dumps(line))
    later["kinds"]["image"]["load_share"] = [0.5, 0.5]
    text = "\n".join(json.dumps(one) for one in (line, {**line, "step": 9}, later))
    (tmp_path / "experts.jsonl").write_text(text + '\n{"stage": "tr')
    (series,) = history(tmp_path)
    assert series.steps == (5, 9)
    assert series.load_share == ((0.5, 0.5), (0.25, 0.75))
    (tmp_path / "experts.jsonl").write_text('{"stage": "tr\n' + text)
    with pytest.raises(ValueError, match="line 1 is not a line of ExpertActivation"):
        history(tmp_path)
    names = Counter(curve.name for curve in curves(made.run))
    assert names["train/loss"] == 1
    assert history(tmp_path / "nothing") == curves(tmp_path / "nothing") == ()
