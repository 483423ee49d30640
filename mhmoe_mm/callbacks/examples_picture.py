"""Pictures of which experts read the patches of images and the words of texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mhmoe_mm.callbacks.heatmap import COLOURS, save
from mhmoe_mm.callbacks.routing_rows import IMAGE, TEXT, RoutedRow
from mhmoe_mm.inputs.spelling import Spelling

_MOST_LAYERS = 6
_LINE = 76  # letters
_DIM = 0.35  # of the picture that shows through the colours


def draw_patches(
    rows: Sequence[RoutedRow], experts: dict[str, int], title: str, path: Path
) -> None:
    """Draw images to a PNG, each beside its patches' different experts and each layer's choice.

    Args:
        rows: with pixels.
        experts: every layer's number of experts.
        title: above it all.
        path: the file, replaced as a whole or not at all.
    """
    shown = [name for name in experts if any(_chosen(row, name) is not None for row in rows)]
    shown = shown[-_MOST_LAYERS:]
    counts = [row.diversity(row.part(IMAGE), experts) for row in rows]
    top = _most(rows, IMAGE, experts)
    figure = Figure(
        figsize=(2.0 * (2 + len(shown)) + 1, 2.1 * len(rows) + 0.9), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 2 + len(shown), squeeze=False)
    for row, count, places in zip(rows, counts, axes, strict=True):
        assert row.pixel is not None
        seen = row.pixel.transpose(1, 2, 0)
        for axis in places:
            axis.imshow(seen)
            axis.set_axis_off()
        places[0].set_title(_cut(row.key, 22), fontsize=7)
        if count is not None:
            _over(places[1], row, colormaps[COLOURS](Normalize(1, top)(count)))
        for axis, name in zip(places[2:], shown, strict=True):
            chosen = _chosen(row, name)
            if chosen is not None:
                _over(axis, row, _colours_of(chosen, experts[name]))
    axes[0, 1].set_title("different experts", fontsize=8)
    for axis, name in zip(axes[0, 2:], shown, strict=True):
        axis.set_title(f"{name}\n{experts[name]} experts", fontsize=7)
    scale = ScalarMappable(Normalize(1, top), COLOURS)
    figure.colorbar(scale, ax=axes, label="different experts", shrink=0.8)
    figure.suptitle(f"{title}; columns of layers: a colour is what head 0 chose first", fontsize=10)
    save(figure, path)


def draw_words(
    rows: Sequence[RoutedRow], spelling: Spelling, experts: dict[str, int], title: str, path: Path
) -> None:
    """Draw texts to a PNG: a token in the colour of its different experts, mean over its layers;
    below it each head's first choice in the last layer that it passes.
    """
    top = _most(rows, TEXT, experts)
    lines = [line for row in rows for line in _lines(row, spelling)]
    figure = Figure(figsize=(12, 0.62 * len(lines) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_xlim(0, _LINE + 2)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_axis_off()
    for number, (row, places) in enumerate(lines):
        _write(axis, number, row, places, spelling, experts, top)
    scale = ScalarMappable(Normalize(1, top), COLOURS)
    figure.colorbar(scale, ax=axis, label="different experts, mean over layers", shrink=0.8)
    figure.suptitle(f"{title}; below a token: the expert that each head chose first", fontsize=10)
    save(figure, path)


def _write(
    axis: Axes,
    line: int,
    row: RoutedRow,
    places: np.ndarray,
    spelling: Spelling,
    experts: dict[str, int],
    top: float,
) -> None:
    count = row.diversity(places, experts)
    shades = colormaps[COLOURS](
        Normalize(1, top)(np.zeros(len(places)) if count is None else count)
    )
    last = next(
        (name for name in reversed(experts) if row.experts_of(places, name) is not None), ""
    )
    chosen = row.experts_of(places, last)
    left = 0.5
    for i, place in enumerate(places):
        piece = _piece(spelling, int(row.tokens.vocabulary_id[place]))
        under = "" if chosen is None else " ".join(map(str, chosen[i, :, 0]))
        dark = shades[i][:3].mean() < 0.55
        box = {"boxstyle": "square,pad=0.15", "facecolor": shades[i], "edgecolor": "none"}
        axis.text(
            left, line, piece, family="monospace", fontsize=9, bbox=box, va="center",
            color="white" if dark else "black",
        )  # fmt: skip
        axis.text(left, line + 0.38, under, family="monospace", fontsize=6, va="center")
        left += _width(piece, under)


def _lines(row: RoutedRow, spelling: Spelling) -> list[tuple[RoutedRow, np.ndarray]]:
    """A text in lines that fit, two at most."""
    heads = max((expert.shape[1] for expert in row.expert.values()), default=1)
    lines: list[list[int]] = [[]]
    width = 0.0
    for place in row.part(TEXT).tolist():
        piece = _piece(spelling, int(row.tokens.vocabulary_id[place]))
        own = _width(piece, "00 " * heads)
        if width + own > _LINE and lines[-1]:
            lines.append([])
            width = 0.0
        lines[-1].append(place)
        width += own
    return [(row, np.array(line)) for line in lines[:2] if line]


def _width(piece: str, under: str) -> float:
    """In letters; what is below is smaller."""
    return max(len(piece), len(under) * 0.7) + 0.8


def _piece(spelling: Spelling, token: int) -> str:
    """A dollar sign would begin a formula."""
    return spelling.piece(token).strip().replace("$", r"\$") or "·"


def _chosen(row: RoutedRow, layer: str) -> np.ndarray | None:
    found = row.experts_of(row.part(IMAGE), layer)
    return None if found is None else found[:, 0, 0]


def _most(rows: Sequence[RoutedRow], modality: int, experts: dict[str, int]) -> float:
    """Different experts that a token can have: the end of the scale."""
    sizes = [
        min(found.shape[1] * found.shape[2], number)
        for row in rows
        for name, number in experts.items()
        if (found := row.experts_of(row.part(modality), name)) is not None
    ]
    return float(max([2, *sizes]))


def _colours_of(chosen: np.ndarray, number: int) -> np.ndarray:
    """(patches 4) a colour for every expert; refused ones stay without."""
    colours = colormaps["hsv"](chosen.clip(min=0) / number)
    colours[chosen < 0] = 0
    return colours


def _over(axis: Axes, row: RoutedRow, colours: np.ndarray) -> None:
    """Lay colours (patches 4) over an image."""
    assert row.pixel is not None
    height, width = row.pixel.shape[1:]
    table = colours.reshape(*row.grid, 4).copy()
    table[..., 3] *= 1 - _DIM
    axis.imshow(table, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"
