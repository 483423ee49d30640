"""Time by what it was spent on, on a processor or on a GPU."""

import time
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "forward", "backward", "optimizer", "other")


class StepClock:
    """Adds up the time between marks, by what was done before each.

    On a GPU the marks are events of its own, so that nothing waits for it until they are read.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Begin anew, now."""
        self._marks: list[tuple[str, Any]] = [("other", self._now())]
        self._spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    def mark(self, part: str) -> None:
        """What was done since the last mark is one of `PARTS`."""
        self._marks.append((part, self._now()))

    def skip(self) -> None:
        """What was done since the last mark does not count."""
        self._settle()
        self._marks = [("other", self._now())]

    def read(self) -> tuple[dict[str, float], float]:
        """(seconds by part, seconds altogether) up to the last mark; waits for a GPU."""
        self._settle()
        return dict(self._spent), sum(self._spent.values())

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for (_, before), (part, after) in pairwise(self._marks):
            if self.device.type == "cuda":
                self._spent[part] += before.elapsed_time(after) / 1e3
            else:
                self._spent[part] += after - before
        self._marks = self._marks[-1:]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
