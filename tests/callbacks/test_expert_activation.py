import csv
import json
import logging
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from mhmoe_mm.callbacks.expert_activation import ExpertActivation
from tests.callbacks.standin import Watched, load_of, numbers, quiet_trainer

LAYERS = ("blocks.1.ffn", "blocks.3.ffn")


def growing(stage: str, batch: int):
    """Batch b sends b + 1 image tokens to expert 0, one to expert 1 and 5 texts to expert 2."""
    load = load_of([[batch + 1, 1, 0], [0, 0, 5]], [batch + 2, 5])
    return dict.fromkeys(LAYERS, load)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "experts.jsonl").read_text().splitlines()]


def logged(folder: Path) -> list[dict[str, str]]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def test_each_line_holds_exactly_the_steps_since_the_last(tmp_path):
    watch = ExpertActivation(every_n_steps=3)
    quiet_trainer(tmp_path, [watch], max_steps=7).fit(Watched(growing), numbers(7))
    events = [line for line in lines(tmp_path) if line["layer"] == LAYERS[0]]
    assert [(e["stage"], e["step"], e["batches"]) for e in events] == [
        ("train", 3, 3),
        ("train", 6, 3),
        ("train", 7, 1),
    ]
    assert [e["kinds"]["image"]["count"] for e in events] == [[6, 3, 0], [15, 3, 0], [7, 1, 0]]
    assert [e["kinds"]["text"]["tokens"] for e in events] == [15, 15, 5]
    assert [e["kinds"]["all"]["count"] for e in events] == [[6, 3, 15], [15, 3, 15], [7, 1, 5]]
    assert {line["layer"] for line in lines(tmp_path)} == set(LAYERS)


def test_accumulated_micro_batches_count(tmp_path):
    watch = ExpertActivation(every_n_steps=1)
    trainer = quiet_trainer(tmp_path, [watch], max_steps=2, accumulate_grad_batches=3)
    trainer.fit(Watched(growing), numbers(6))
    images = [e["kinds"]["image"]["count"] for e in lines(tmp_path) if e["layer"] == LAYERS[0]]
    assert images == [[6, 3, 0], [15, 3, 0]]


def test_validation_is_summed_over_its_batches_and_sanity_checks_are_not_counted(tmp_path):
    watch = ExpertActivation(every_n_steps=100)
    trainer = quiet_trainer(tmp_path, [watch], max_steps=2, num_sanity_val_steps=2)
    trainer.fit(Watched(growing), numbers(2), numbers(3))
    val = [line for line in lines(tmp_path) if line["stage"] == "val"]
    assert [(line["step"], line["batches"]) for line in val] == [(2, 3), (2, 3)]
    assert val[0]["kinds"]["image"]["count"] == [6, 3, 0]


def test_validation_means_can_be_watched_by_other_callbacks(tmp_path):
    best = ModelCheckpoint(monitor="val/experts/activation_image", mode="max")
    trainer = quiet_trainer(
        tmp_path, [ExpertActivation(), best], max_steps=1, enable_checkpointing=True
    )
    trainer.fit(Watched(growing), numbers(1), numbers(3))
    assert best.best_model_score is not None
    assert best.best_model_score.item() == pytest.approx(2 / 3)
    assert trainer.callback_metrics["val/experts/dead_share"] == 0
    (result,) = trainer.test(Watched(growing), numbers(3), verbose=False)
    assert result["test/experts/activation"] == pytest.approx(2 / 3)  # 6, 3, 15; half of 8 is 4


def test_compact_logging_is_few_numbers_and_detail_is_all_of_them(tmp_path):
    names = {}
    for detail in (False, True):
        folder = tmp_path / str(detail)
        watch = ExpertActivation(every_n_steps=2, detail=detail)
        trainer = quiet_trainer(folder, [watch], CSVLogger(folder), max_steps=4)
        trainer.fit(Watched(growing), numbers(4), numbers(3))
        rows = logged(folder)
        names[detail] = {name for name in rows[0] if "experts/" in name}
        assert any(row["step"] == "2" and row["experts/activation_image"] for row in rows)
        assert any(row["val/experts/activation_text"] for row in rows)
    assert len(names[False]) < 25
    assert names[False] < names[True]
    wanted = {f"experts/{LAYERS[0]}/image/{n}" for n in ("activation", "activation_above_0.05")}
    wanted |= {f"val/experts/{LAYERS[1]}/all/max_over_mean_random"}
    assert wanted < names[True]


def test_every_validation_leaves_a_picture_and_the_last_is_in_front(tmp_path):
    watch = ExpertActivation()
    trainer = quiet_trainer(
        tmp_path, [watch], max_steps=4, val_check_interval=2, check_val_every_n_epoch=None
    )
    trainer.fit(Watched(growing), numbers(4), numbers(2))
    pictures = sorted(path.name for path in (tmp_path / "experts").iterdir())
    assert pictures == ["val-00000002.png", "val-00000004.png"]
    last = (tmp_path / "experts" / pictures[-1]).read_bytes()
    assert (tmp_path / "experts.png").read_bytes() == last
    with Image.open(tmp_path / "experts.png") as picture:
        assert picture.format == "PNG"


def test_training_without_validation_still_ends_with_a_picture(tmp_path):
    quiet_trainer(tmp_path, [ExpertActivation()], max_steps=3).fit(Watched(growing), numbers(3))
    assert (tmp_path / "experts.png").exists()


def test_without_heatmap_or_in_a_debugging_run_no_picture_is_left(tmp_path):
    watch = ExpertActivation(heatmap=False)
    quiet_trainer(tmp_path / "a", [watch], max_steps=1).fit(
        Watched(growing), numbers(1), numbers(1)
    )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["experts.jsonl"]
    trainer = quiet_trainer(tmp_path / "b", [ExpertActivation()], fast_dev_run=2)
    trainer.fit(Watched(growing), numbers(3), numbers(3))
    assert not (tmp_path / "b").exists()


def test_summary_is_the_newest_validation(tmp_path):
    watch = ExpertActivation(every_n_steps=1)
    assert watch.summary() == []
    trainer = quiet_trainer(tmp_path, [watch], max_steps=2)
    trainer.fit(Watched(growing), numbers(2), numbers(3))
    rows = watch.summary()
    assert [(r.layer, r.kind) for r in rows] == [
        (layer, kind) for layer in LAYERS for kind in ("image", "text", "all")
    ]
    assert rows[0].max_over_mean == pytest.approx(6 * 3 / 9)
    assert rows[0].activation == pytest.approx(2 / 3)
    assert rows[1].dead == 2
    trainer.validate(Watched(growing), numbers(2), verbose=False)
    assert watch.summary()[0].max_over_mean == pytest.approx(3 * 3 / 5)


def test_a_dense_model_is_told_once_and_leaves_no_files(tmp_path, caplog):
    watch = ExpertActivation(every_n_steps=1)
    with caplog.at_level(logging.WARNING, "mhmoe_mm"):
        trainer = quiet_trainer(tmp_path, [watch], max_steps=3)
        trainer.fit(Watched(lambda stage, batch: {}), numbers(3), numbers(2))
    said = [r.getMessage() for r in caplog.records if "ExpertActivation" in r.getMessage()]
    assert len(said) == 1
    assert "no sparse layer" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_dead_expert_is_named_once_per_layer_and_validation(tmp_path, caplog):
    def starved(stage: str, batch: int):
        return dict.fromkeys(LAYERS, load_of([[100, 90, 0], [80, 90, 0]], [190, 170]))

    with caplog.at_level(logging.WARNING, "mhmoe_mm"):
        trainer = quiet_trainer(tmp_path, [ExpertActivation(every_n_steps=1)], max_epochs=2)
        trainer.fit(Watched(starved), numbers(2), numbers(3))
    said = [r.getMessage() for r in caplog.records if "got no token" in r.getMessage()]
    assert [s.split(":")[0] for s in said] == list(LAYERS) * 2  # two epochs


def test_a_resumed_run_appends_after_cutting_off_a_torn_line(tmp_path):
    def fit(steps: int, resume: str | None):
        saved = ModelCheckpoint(dirpath=tmp_path / "saved", save_last=True)
        trainer = quiet_trainer(
            tmp_path,
            [ExpertActivation(every_n_steps=2), saved],
            max_steps=steps,
            enable_checkpointing=True,
        )
        trainer.fit(Watched(growing), numbers(4), ckpt_path=resume)

    fit(4, None)
    before = (tmp_path / "experts.jsonl").read_bytes()
    with (tmp_path / "experts.jsonl").open("ab") as file:
        file.write(b'{"stage": "tra')
    fit(8, str(tmp_path / "saved" / "last.ckpt"))
    assert (tmp_path / "experts.jsonl").read_bytes().startswith(before)
    steps = [line["step"] for line in lines(tmp_path) if line["layer"] == LAYERS[0]]
    assert steps == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, but is 0"),
        ({"taus": [0.1, 1.5]}, r"\[0, 1\), but 1.5 is among"),
        ({"tau": -0.5}, "-0.5 is among"),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        ExpertActivation(**options)
