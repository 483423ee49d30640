"""A thread that does what it is given, and values that stay as they were."""

import threading

import pytest
import torch

from mhmoe_mm.storage.background import Writer, snapshot


@pytest.fixture
def writer():
    made = Writer()
    yield made
    made.close()


def test_work_is_done_in_its_order_and_beside_who_gave_it(writer: Writer):
    done, go = [], threading.Event()
    writer.add(lambda: go.wait(10))
    for number in range(3):
        writer.add(lambda number=number: done.append(number))
    assert done == []
    assert writer.error is None
    go.set()
    assert writer.wait() is None
    assert done == [0, 1, 2]


def test_after_a_failure_nothing_more_is_done_until_someone_has_asked(writer: Writer):
    done = []

    def fail() -> None:
        raise OSError("no room")

    for work in (lambda: done.append(1), fail, lambda: done.append(2)):
        writer.add(work)
    assert str(writer.wait()) == "no room"
    assert done == [1]
    writer.add(lambda: done.append(3))
    assert writer.wait() is None
    assert done == [1, 3]


def test_a_snapshot_stays_as_it_is_and_keeps_what_is_shared_shared():
    tied = torch.arange(6.0).view(2, 3)
    state = {
        "one": tied, "other": tied.detach(), "turned": tied.T, "step": torch.tensor(3.0),
        "empty": torch.empty(0), "list": [tied[1], ("plain", 7)], "nested": {"kept": ["a"]},
    }  # fmt: skip
    held = snapshot(state)
    tied.add_(1)
    state["step"].add_(1)
    state["nested"]["kept"].append("b")
    assert held["one"].equal(torch.arange(6.0).view(2, 3))
    assert held["one"].data_ptr() == held["other"].data_ptr() != tied.data_ptr()
    assert held["turned"].equal(held["one"].T)
    assert held["list"][0].equal(held["one"][1])
    assert held["list"][1] == ("plain", 7)
    assert held["step"] == 3
    assert held["nested"] == {"kept": ["a"]}
