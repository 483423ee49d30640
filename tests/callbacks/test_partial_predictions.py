"""What was kept comes back as it was, to the bit, however the writing ended."""

from pathlib import Path

import pytest
import torch

from mhmoe_mm.callbacks.partial_predictions import Kept, PartialPredictions

FIRST = [Kept(4, "00000.tar/7", {"question_id": 17, "answer": "Grüße\n\"'"})]
SECOND = [Kept(1, "00001.tar/2", {"answer": ""}), Kept(0, "00001.tar/3", {"answer": "no"})]


def kept(folder: Path) -> list[Kept]:
    return list(PartialPredictions(folder).read())


def keep(folder: Path, *batches: list[Kept], rank: int = 0) -> Path:
    partial = PartialPredictions(folder)
    partial.begin({"weights": "a"})
    partial.open(rank)
    for batch in batches:
        partial.append(batch)
    partial.close()
    return partial.folder / f"rank-{rank:05d}.jsonl"


def test_rows_of_all_ranks_and_runs_come_back(tmp_path: Path):
    keep(tmp_path, FIRST)
    keep(tmp_path, SECOND, rank=3)
    keep(tmp_path, [], FIRST)
    assert kept(tmp_path) == [*FIRST, *FIRST, *SECOND]


def test_vectors_come_back_to_the_bit(tmp_path: Path):
    values = torch.tensor([0.1, -0.0, 1e-45, float("inf"), float("nan"), torch.pi])
    half = torch.randn(5, generator=torch.Generator().manual_seed(3)).bfloat16()
    keep(tmp_path, [Kept(2, "k", {"image": values, "text": half})])
    (row,) = [kept.row for kept in kept(tmp_path)]
    assert row["image"].numpy().tobytes() == values.numpy().tobytes()
    assert torch.equal(row["text"], half.float())


def test_a_line_is_there_before_the_next_is_written(tmp_path: Path):
    partial = PartialPredictions(tmp_path)
    partial.begin({})
    partial.open(0)
    partial.append(FIRST)
    assert kept(tmp_path) == FIRST
    partial.close()


def test_a_last_line_that_is_cut_anywhere_costs_only_itself(tmp_path: Path):
    path = keep(tmp_path, FIRST, SECOND)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for end in range(first, len(content)):
        path.write_bytes(content[:end])
        PartialPredictions(tmp_path).begin({})
        assert kept(tmp_path) == FIRST
        keep(tmp_path, SECOND)
        assert kept(tmp_path) == [*FIRST, *SECOND]


def test_a_damaged_line_is_named(tmp_path: Path):
    path = keep(tmp_path, FIRST, SECOND, FIRST)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][5:] + lines[2])
    with pytest.raises(ValueError, match=r"rank-00000\.jsonl:2 is damaged .*remove this line"):
        kept(tmp_path)


def test_a_prediction_that_cannot_be_kept_is_refused_as_a_whole(tmp_path: Path):
    partial = PartialPredictions(tmp_path)
    partial.begin({})
    partial.open(0)
    with pytest.raises(TypeError, match="cannot hold a set"):
        partial.append([*FIRST, Kept(5, "k", {"answers": {1, 2}})])
    partial.close()
    assert kept(tmp_path) == []


def test_differences_are_named_one_by_one(tmp_path: Path):
    there, here = {"weights": "a", "top_k": 2, "gone": 1}, {"weights": "a", "top_k": 3, "new": [5]}
    partial = PartialPredictions(tmp_path)
    assert partial.differences(there) == []
    partial.begin(there)
    assert partial.differences(there) == []
    assert partial.differences(here) == [
        "gone: 1 there, None here", "new: None there, [5] here", "top_k: 2 there, 3 here",
    ]  # fmt: skip
    assert partial.differences({**there, "top_k": 2.0}) == []


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str):
    partial = PartialPredictions(tmp_path)
    partial.begin({})
    partial.manifest.write_text(text)
    with pytest.raises(ValueError, match="is not a manifest of predictions"):
        partial.differences({})
