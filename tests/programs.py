"""Programs of their own, for tests that talk to them and end them."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def heeds_interrupts() -> None:
    """For `preexec_fn`: Ctrl-C ends the program, also where whoever started the tests had it
    ignored, as shells do for what runs in the background.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that was started; whatever becomes of the test, it is gone at the end."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heeds_interrupts, **pipes | options) as process:
        try:
            yield process
        finally:
            process.kill()
