"""How far a program is, on stderr: a live bar on a terminal, a plain line per tenth elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

TENTHS = 10


class ProgressBar:
    """Counts to `total`; a context manager."""

    def __init__(self, label: str, total: int, unit: str = "samples"):
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self.console = Console(stderr=True)
        self.live: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.live.start()
            self.task = self.live.add_task(self.label, total=self.total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def advance(self, count: int = 1) -> None:
        before = self.done
        self.done += count
        if self.live is not None:
            self.live.advance(self.task, count)
        elif self.done * TENTHS // self.total > before * TENTHS // self.total:
            line = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
            self.console.print(line, highlight=False)
