"""Curves of a comparison are what was logged."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from tools.compare.curves import Curve, band, draw, logged


def test_a_curve_is_what_the_logger_wrote_and_the_later_of_two_lines(tmp_path: Path):
    logger = CSVLogger(tmp_path, name="lamps")
    for step, value in [(6, 3.5), (13, 2.25), (20, 1.125)]:
        logger.log_metrics({"train/loss": 9.0}, step=step - 1)
        logger.log_metrics({"val/loss": value}, step=step)
    logger.save()
    folder = Path(logger.log_dir)
    assert logged(folder, "val/loss") == Curve([6, 13, 20], [3.5, 2.25, 1.125])
    with (folder / "metrics.csv").open("a") as file:
        file.write((folder / "metrics.csv").read_text().splitlines()[-1].replace("1.125", "1.5"))
    assert logged(folder, "val/loss").value == [3.5, 2.25, 1.5]
    assert logged(folder, "val/other") == logged(tmp_path, "val/loss") == Curve([], [])


def test_a_band_holds_every_seed_at_the_steps_that_all_have():
    curves = [Curve([5, 7, 11], [4.0, 3.0, 1.0]), Curve([5, 11], [2.0, 2.0])]
    found = band(curves)
    assert found.step == [5, 11]
    assert found.mean == [3.0, 1.5]
    assert (found.low, found.high) == ([2.0, 1.0], [4.0, 2.0])
    assert band([]).step == []


def test_a_picture_is_drawn_of_what_there_is(tmp_path: Path):
    path = tmp_path / "curves.png"
    assert not draw({"none": band([])}, "val/loss", "lamps", path)
    assert not path.exists()
    one = band([Curve([5, 7], [4.0, 3.0])])
    assert draw({"none": band([]), "one": one}, "val/loss", "lamps", path)
    alone = path.read_bytes()
    assert alone.startswith(b"\x89PNG")
    draw({"one": one, "two": band([Curve([5, 7], [3.0, 3.5])])}, "val/loss", "lamps", path)
    assert path.read_bytes() != alone
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("value", [3.0, 0.0])
def test_a_curve_that_does_not_move_is_drawn(tmp_path: Path, value: float):
    same = band([Curve([5, 7, 11, 13, 17], [value] * 5)])
    assert draw({"flat": same}, "val/loss", "lamps", tmp_path / "curves.png")
