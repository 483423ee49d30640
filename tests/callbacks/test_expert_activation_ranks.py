import json

import pytest

from tests.ranks import run_on_two_ranks


@pytest.mark.dist
def test_two_ranks_that_see_different_layers_write_one_exact_sum(tmp_path):
    run_on_two_ranks("tests.callbacks.two_ranks", tmp_path)
    text = (tmp_path / "experts.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    found = [
        (e["stage"], e["step"], e["layer"], kind, stats["count"], stats["tokens"])
        for e in events
        for kind, stats in e["kinds"].items()
    ]
    # Batches 0 to 5 in training, 0 to 3 in validation; rank 1 alone knows the layer `odd`.
    assert found == [
        ("train", 2, "both", "image", [0 + 1 + 2 + 3, 4, 0], 10),
        ("train", 2, "odd", "text", [0, 0, 14, 1 + 3, 0], 18),
        ("val", 3, "both", "image", [0 + 1 + 2 + 3, 4, 0], 10),
        ("val", 3, "odd", "text", [0, 0, 14, 1 + 3, 0], 18),
        ("train", 3, "both", "image", [4 + 5, 2, 0], 11),
        ("train", 3, "odd", "text", [0, 0, 7, 5, 0], 12),
    ]
