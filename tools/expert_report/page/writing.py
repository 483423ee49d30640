"""Puts the page together: markup, style, scripts and data in one file."""

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from mhmoe_mm.storage.whole import write_text
from tools.expert_report.contents import RunContents
from tools.expert_report.contents_json import plain
from tools.expert_report.page.assembly import digest, filled, joined
from tools.expert_report.page.packing import packed, script_safe, well_formed


def write_page(runs: Sequence[RunContents], path: Path) -> None:
    """Write a report of one run, or of two side by side.

    The file holds everything: its policy forbids it to load anything, and to run any script but its
    own. Folders on the way are made.

    Raises:
        ValueError: no run, more than two, or two of one name.
    """
    names = [run.summary.name for run in runs]
    if len(runs) not in (1, 2):
        raise ValueError(f"A page shows one run, or two side by side, but {len(runs)} were given.")
    if len(set(names)) < len(names):
        raise ValueError(
            f"Both runs are called {names[0]!r}: give them names that tell them apart."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(runs))


def page(runs: Sequence[RunContents]) -> str:
    """The text of the file."""
    folder = files(__package__ or "tools.expert_report.page")
    scripts = sorted((folder / "scripts").iterdir(), key=lambda script: script.name)
    script = joined(scripts)
    parts = {
        "title": html.escape(well_formed(" against ".join(run.summary.name for run in runs))),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {digest(script)}",
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "data": script_safe([packed(plain(run)) for run in runs]),
    }
    return filled((folder / "page.html").read_text(encoding="utf-8"), parts)
