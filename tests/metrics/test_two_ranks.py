"""Metrics of an evaluation that several processes share."""

import json

import pytest

from tests.metrics.two_ranks import COUNT, figures
from tests.ranks import run_on_two_ranks


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_two_ranks_get_the_figures_of_one_process_to_the_last_digit(tmp_path):
    run_on_two_ranks("tests.metrics.two_ranks", tmp_path)
    alone = figures(list(range(COUNT)))
    for rank in range(2):
        # As text: the order of the figures, which is that of a printed table, is the same too.
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {split: json.dumps(value) for split, value in found.items()} == {
            "mixed": json.dumps(alone), "all on the second": json.dumps(alone)
        }  # fmt: skip
    assert all(value > 0 for figures_ in alone.values() for value in figures_.values())
