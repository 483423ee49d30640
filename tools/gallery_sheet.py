"""A sheet of square cells with images and texts, as a PNG; it knows nothing of what they are."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

CELL, GAP, LABEL, HEADING, MARGIN = 1.6, 0.16, 0.32, 0.75, 0.3
"""Inches: side of a cell, space between cells, room below one, above a section, at the edges."""
PADDING = 0.13
"""Inches between the frame of a cell and its text."""
DPI = 110
FONT, TEXT_SIZE, FACT_SIZE, HEADING_SIZE, TITLE_SIZE, LEADING = "DejaVu Sans", 9, 10, 11, 13, 1.25
"""matplotlib brings the font along; sizes in points, the leading in sizes."""
RIGHT, WRONG, QUERY, FAINT = "#1a7f37", "#b4b4b4", "#f0f0ea", "#555555"


class Cell(NamedTuple):
    """An image, uint8 (height width 3), or a text; what stands below it; how it is framed."""

    content: np.ndarray | str
    label: str
    right: bool = False
    query: bool = False


class Section(NamedTuple):
    """Rows of cells; None leaves a place empty."""

    heading: str
    columns: list[str]
    """What stands above each column."""
    rows: list[list[Cell | None]]


@contextmanager
def _lacking_letters_are_boxes() -> Iterator[None]:
    """Without a warning for each of them: `letters_lacking` tells them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        yield


@_lacking_letters_are_boxes()
def draw(title: str, facts: Sequence[str], sections: Sequence[Section]) -> Figure:
    """The title, facts below it, a line each, and the sections below each other."""
    columns = max(len(section.columns) for section in sections)
    width = columns * CELL + (columns - 1) * GAP
    title = wrapped(title, width, 3, TITLE_SIZE)
    below = "\n".join(wrapped(fact, width, 2, FACT_SIZE) for fact in facts)
    heights = [_tall(title, TITLE_SIZE) + 0.06, _tall(below, FACT_SIZE)]
    heights += [HEADING + len(section.rows) * (CELL + LABEL + GAP) for section in sections]
    sheet = _Sheet(width + 2 * MARGIN, sum(heights) + 2 * MARGIN)
    tops = iter(np.cumsum([MARGIN, *heights]).tolist())
    sheet.write(title, MARGIN, next(tops), TITLE_SIZE, weight="bold")
    sheet.write(below, MARGIN, next(tops), FACT_SIZE)
    for section in sections:
        sheet.section(section, next(tops))
    return sheet.figure


class _Sheet:
    """A figure on which places are inches from the top left."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def write(self, text: str, left: float, top: float, size: float, **style: Any) -> None:
        """Text below a point."""
        usual = {"va": "top", "family": FONT, "linespacing": LEADING, "parse_math": False}
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, text, size=size, **(usual | style))

    def section(self, section: Section, top: float) -> None:
        """A heading, the names of the columns and the rows."""
        self.write(section.heading, MARGIN, top + 0.2, HEADING_SIZE, weight="bold")
        style = {"ha": "center", "va": "baseline", "color": FAINT}
        for left, name in zip(_lefts(), section.columns, strict=False):
            self.write(name, left + CELL / 2, top + HEADING - 0.1, TEXT_SIZE, **style)
        top += HEADING
        for row in section.rows:
            for left, cell in zip(_lefts(), row, strict=False):
                if cell is not None:
                    self.cell(cell, left, top)
            top += CELL + LABEL + GAP

    def cell(self, cell: Cell, left: float, top: float) -> None:
        """The cell below and to the right of a point, with its label."""
        share = np.array([left, self.height - top - CELL, CELL, CELL])
        share /= [self.width, self.height, self.width, self.height]
        axis = self.figure.add_axes(tuple(share.tolist()), xticks=[], yticks=[])
        axis.set_facecolor(QUERY if cell.query else "white")
        for spine in axis.spines.values():
            spine.set(color=RIGHT if cell.right else WRONG, linewidth=3.5 if cell.right else 1)
        if isinstance(cell.content, str):
            room = CELL - 2 * PADDING
            most = int(room * 72 / (TEXT_SIZE * LEADING))
            text = wrapped(cell.content, room, most, TEXT_SIZE)
            style = {"va": "center", "style": "italic" if cell.query else "normal"}
            middle = top + CELL / 2
            self.write(text, left + CELL / 2, middle, TEXT_SIZE, ha="center", zorder=3, **style)
        else:
            height, width = np.array(cell.content.shape[:2]) / max(cell.content.shape[:2]) / 2
            axis.imshow(cell.content, extent=(-width, width, -height, height))
            axis.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5))
        style = {"color": RIGHT, "weight": "bold"} if cell.right else {}
        label = top + CELL + 0.07
        self.write(cell.label, left + CELL / 2, label, TEXT_SIZE, ha="center", **style)


def _lefts() -> Iterator[float]:
    """Where the columns begin."""
    left = MARGIN
    while True:
        yield left
        left += CELL + GAP


def _tall(text: str, size: float) -> float:
    return LEADING * size * (text.count("\n") + 1) / 72


def wrapped(text: str, width: float, most: int, size: float) -> str:
    """The text in lines no wider than so many inches at a size in points, cut to `most` lines.

    A word that is wider than a line is broken anywhere.
    """
    rest = " ".join(text.split())
    lines: list[str] = []
    while rest and len(lines) < most:
        end = next((n for n in range(1, len(rest)) if _inches(rest[: n + 1], size) > width), None)
        if end is None:
            end = len(rest)
        elif (blank := rest.rfind(" ", 0, end + 1)) > 0:
            end = blank
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        while last and _inches(f"{last} …", size) > width:
            last = last[:-1]
        lines[-1] = f"{last.rstrip()} …"
    return "\n".join(lines)


def _inches(text: str, size: float) -> float:
    """The width of a line; of what is larger than captions, in bold."""
    font = FontProperties(family=FONT, size=size, weight="bold" if size > TEXT_SIZE else "normal")
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def letters_lacking(texts: Sequence[str]) -> list[str]:
    """The characters that the font cannot show, in order."""
    known = get_font(findfont(FontProperties(family=FONT))).get_charmap()
    used = {letter for text in texts for letter in text if not letter.isspace()}
    return sorted(letter for letter in used if ord(letter) not in known)


@_lacking_letters_are_boxes()
def png(figure: Figure) -> bytes:
    """The figure as a file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()
