"""The picture of expert loads: one panel per kind of token, a row per layer, a column per expert.

Colour is the load in even shares on a fixed scale, so pictures of different steps, models and
numbers of experts can be laid side by side. The last row of a panel is random routing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from mhmoe_mm.callbacks.expert_stats import KindStats, LayerStats
from mhmoe_mm.storage.whole import write_whole

COLOURS = "viridis"  # readable with colour-blind eyes and in grey: its brightness rises evenly
_TOP = 2.0  # even shares; beyond it the colour stays the same
_ROW, _COLUMN = 0.28, 0.3  # inches


def draw_heatmap(layers: Sequence[LayerStats], title: str, path: Path) -> None:
    """Draw the loads to a PNG; the file is replaced as a whole or not at all."""
    assert layers, "there is no picture of no layers"
    kinds = list(dict.fromkeys(kind.kind for stats in layers for kind in stats.kinds))
    panels = [[(s.layer, k) for s in layers for k in s.kinds if k.kind == name] for name in kinds]
    heights = [len(panel) + 1 for panel in panels]
    width = max(len(stats.overall.counts) for stats in layers)
    size = (
        min(max(5.0 + _COLUMN * width, 8.0), 30.0),
        1.4 + _ROW * sum(heights) + 0.7 * len(kinds),
    )
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    images = [_panel(*place, width) for place in zip(axes, kinds, panels, strict=True)]
    axes[-1].set_xlabel("expert")
    figure.colorbar(images[0], ax=list(axes), extend="max", label="load in even shares (1 = even)")
    figure.suptitle(title)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture as a PNG; the file is replaced as a whole or not at all."""
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=100))


def _panel(axis: Axes, name: str, panel: Sequence[tuple[str, KindStats]], width: int) -> AxesImage:
    widest = max((kind for _, kind in panel), key=lambda kind: len(kind.counts))
    counts = [*(kind.counts for _, kind in panel), widest.random_counts]
    load = np.full((len(counts), width), np.nan)
    for row, count in enumerate(counts):
        load[row, : len(count)] = np.array(count) * len(count) / max(sum(count), 1)
    image = axis.imshow(
        load, cmap=COLOURS, vmin=0, vmax=_TOP, aspect="auto", interpolation="nearest"
    )
    dead_row, dead_column = np.nonzero(load == 0)
    axis.scatter(dead_column, dead_row, marker="x", s=18, color="white", linewidths=1)
    axis.axhline(len(panel) - 0.5, color="white", linewidth=3)
    axis.set_title(f"{name}: {max(kind.token for _, kind in panel)} tokens a layer", loc="left")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_yticks(range(len(counts)), [*(layer for layer, _ in panel), "random routing"])
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(counts)), [*(_remark(kind) for _, kind in panel), ""])
    right.tick_params(length=0)
    return image


def _remark(kind: KindStats) -> str:
    seen, chance = kind.usage, kind.random
    active = f"{seen.activation:.0%} active (random {chance.activation:.0%})"
    return f"{active}, fullest {seen.max_over_mean:.1f}"
