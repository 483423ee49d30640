import numpy as np
from PIL import Image

from mhmoe_mm.callbacks.expert_stats import LayerStats, layer_stats
from mhmoe_mm.callbacks.heatmap import draw_heatmap
from tests.callbacks.standin import load_of


def stats(layer: str, image: list[int], text: list[int]) -> LayerStats:
    found = layer_stats(layer, load_of([image, text], [sum(image), sum(text)]), None, ())
    assert found is not None
    return found


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def test_collapsed_and_even_loads_look_different(tmp_path):
    even, collapsed = [101] * 7, [707] + [0] * 6
    for name, counts in (("even", even), ("collapsed", collapsed)):
        draw_heatmap([stats("a", counts, counts)], "same title", tmp_path / f"{name}.png")
    one, other = pixels(tmp_path / "even.png"), pixels(tmp_path / "collapsed.png")
    assert one.shape == other.shape
    assert (np.abs(one - other).sum(axis=2) > 30).mean() > 0.1


def test_layers_of_different_sizes_and_kinds_fit_in_one_picture(tmp_path):
    layers = [stats("a", [5, 6, 7], [0] * 3), stats("b", [0] * 11, [13] * 11)]
    draw_heatmap(layers, "mixed", tmp_path / "mixed.png")
    assert pixels(tmp_path / "mixed.png").size > 0


def test_nothing_half_written_stays_behind(tmp_path):
    draw_heatmap([stats("a", [5, 6, 7], [1, 1, 0])], "title", tmp_path / "one.png")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
