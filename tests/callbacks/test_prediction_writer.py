"""Every row once, in order, whatever happens on the way; and nothing that does not belong."""

import json
from pathlib import Path
from typing import Any

import pytest

from mhmoe_mm.tasks.base import Task
from tests.callbacks.numbered import NumberBatch, Squares, predict, rows

NUMBERS = [5, 3, 11, 2, 17, 13, 7, 19, 23, 29, 31]  # 11 rows: three batches of 3 and one of 2
WHOLE = [{"number": n, "square": n * n} for n in NUMBERS]


def written(folder: Path) -> list[dict[str, int]]:
    return json.loads((folder / "predictions.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_file_has_every_row_once_and_nothing_lies_beside_it(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS))
    assert written(tmp_path) == WHOLE
    assert files(tmp_path).keys() == {"predictions.json"}


def test_a_list_of_one_data_set_is_as_good(tmp_path: Path):
    predict(tmp_path, [rows(NUMBERS)])
    assert written(tmp_path) == WHOLE


@pytest.mark.parametrize("batches", range(1, 4))
def test_what_is_there_makes_no_forward_and_the_file_is_the_same(tmp_path: Path, batches: int):
    predict(tmp_path / "whole", rows(NUMBERS))
    begun = predict(tmp_path / "parts", rows(NUMBERS), limit_predict_batches=batches)
    assert not (tmp_path / "parts/predictions.json").exists()
    resumed = predict(tmp_path / "parts", rows(NUMBERS))
    assert isinstance(begun, Squares)
    assert isinstance(resumed, Squares)
    assert begun.forwards == [NUMBERS[i : i + 3] for i in range(0, 3 * batches, 3)]
    assert resumed.forwards == [NUMBERS[i : i + 3] for i in range(3 * batches, 11, 3)]
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_another_batch_size_goes_on_where_the_first_stopped(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS, 3), limit_predict_batches=2)
    resumed = predict(tmp_path, rows(NUMBERS, 5))
    assert isinstance(resumed, Squares)
    assert resumed.forwards == [NUMBERS[5:10], NUMBERS[10:]]
    assert written(tmp_path) == WHOLE


def test_a_half_written_last_line_is_predicted_again(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS), limit_predict_batches=3)
    path = tmp_path / "predictions.partial/rank-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    resumed = predict(tmp_path, rows(NUMBERS))
    assert isinstance(resumed, Squares)
    assert resumed.forwards == [NUMBERS[6:9], NUMBERS[9:]]
    assert written(tmp_path) == WHOLE


class Breaks(Squares):
    """Fails at its third batch, as a device that is lost does."""

    def predict(self, batch: NumberBatch) -> list[dict[str, Any]]:
        if len(self.forwards) == 2:
            raise RuntimeError("the device is lost")
        return super().predict(batch)


def test_a_failure_says_how_to_go_on_and_gives_the_task_back(tmp_path: Path, said):
    task = Breaks()
    before = task.is_predicted
    with pytest.raises(RuntimeError, match="device is lost"):
        predict(tmp_path, rows(NUMBERS), task)
    assert f"6 of 11 rows are safe; the same command with `--predictions {tmp_path}`" in said.text
    assert task.is_predicted is before
    resumed = predict(tmp_path, rows(NUMBERS))
    assert isinstance(resumed, Squares)
    assert len(resumed.forwards) == 2
    assert written(tmp_path) == WHOLE


def test_rows_that_could_not_be_read_are_left_out_and_counted(tmp_path: Path, capsys):
    predict(tmp_path, rows(NUMBERS, unread=[2, 29]))
    assert written(tmp_path) == [row for row in WHOLE if row["number"] not in (2, 29)]
    missing = json.loads((tmp_path / "predictions.missing.json").read_text())
    assert missing["rows"] == [NUMBERS.index(2), NUMBERS.index(29)]
    assert "2 of 11 rows are not predicted" in capsys.readouterr().out


def test_a_row_that_was_mended_meanwhile_is_predicted(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS, unread=[2]), limit_predict_batches=2)
    resumed = predict(tmp_path, rows(NUMBERS))
    assert isinstance(resumed, Squares)
    assert resumed.forwards[0] == NUMBERS[3:6]  # the batch that 2 is in
    assert written(tmp_path) == WHOLE
    assert not (tmp_path / "predictions.missing.json").exists()


def test_a_row_that_was_predicted_before_it_was_damaged_stays(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS), limit_predict_batches=2)
    predict(tmp_path, rows(NUMBERS, unread=[2]))
    assert written(tmp_path) == WHOLE


def test_predictions_of_other_weights_are_refused_and_left_alone(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS), limit_predict_batches=2, of="a")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"something else \(weights: 'a' there, 'b' here\)"):
        predict(tmp_path, rows(NUMBERS), of="b")
    assert files(tmp_path) == before


def test_predictions_of_other_data_are_refused(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS), limit_predict_batches=2)
    with pytest.raises(ValueError, match="row 1 is shard/3 there, shard/37 here"):
        predict(tmp_path, rows([5, 37, *NUMBERS[2:]]))
    with pytest.raises(ValueError, match="row 5 is predicted there, the data have 4 rows here"):
        predict(tmp_path, rows(NUMBERS[:4]))


def test_a_finished_file_is_never_written_over(tmp_path: Path):
    predict(tmp_path, rows(NUMBERS))
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"predictions\.json is there already"):
        predict(tmp_path, rows(NUMBERS))
    assert files(tmp_path) == before


def test_two_rows_of_one_name_are_refused_by_it_and_kept(tmp_path: Path):
    with pytest.raises(ValueError, match=r"number 3 comes twice, in rows 1 .* and 4 "):
        predict(tmp_path, rows([5, 3, 11, 2, 3]))
    assert files(tmp_path).keys() == {
        "predictions.partial/manifest.json", "predictions.partial/rank-00000.jsonl",
    }  # fmt: skip


def test_where_no_row_could_be_read_there_is_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="None of the 2 rows could be predicted"):
        predict(tmp_path, rows([5, 3], unread=[5, 3]))
    assert not (tmp_path / "predictions.json").exists()


class Mute(Squares):
    prediction_file = None


class Endless:
    """A loader that does not say how many rows it has."""

    def __iter__(self):
        return iter(rows(NUMBERS))


@pytest.mark.parametrize(
    ("task", "loader", "said"),
    [
        (Mute(), rows(NUMBERS), "Mute has nothing to predict"),
        (None, Endless(), "Endless does not say how many rows"),
    ],
    ids=["no format", "no length"],
)
def test_what_cannot_end_in_a_file_is_refused_at_once(
    tmp_path: Path, task: Task | None, loader: Any, said: str
):
    with pytest.raises(ValueError, match=said):
        predict(tmp_path / "new", loader, task)
    assert not (tmp_path / "new").exists()


def test_debugging_leaves_no_file(tmp_path: Path):
    predict(tmp_path / "new", rows(NUMBERS), fast_dev_run=True)
    assert not (tmp_path / "new").exists()
