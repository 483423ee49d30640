"""A checkpoint goes on in any number of ranks, with its experts over any of them."""

import pytest
from safetensors.torch import load_file

from tests.ranks import run_on_ranks


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_any_layout_saved_goes_on_in_every_other(tmp_path):
    worlds = (1, 2)
    for what in ("save", "resume"):
        for world in worlds:
            run_on_ranks(world, "tests.parallel.resharded", str(tmp_path), what, limit_s=280)
    whole = load_file(tmp_path / "1 ranks, ep 1.safetensors")
    resumed = sorted(tmp_path.glob("* to *.safetensors"))
    layouts = ["1 ranks, ep 1", "2 ranks, ep 1", "2 ranks, ep 2"]
    assert [path.stem for path in resumed] == [f"{a} to {b}" for a in layouts for b in layouts]
    for path in resumed:
        found = load_file(path)
        assert found.keys() == whole.keys()
        for name, weight in whole.items():
            apart = (found[name] - weight).abs().max().item()
            assert apart <= 1e-5 * max(weight.abs().max().item(), 1e-3), (path.stem, name, apart)
    for layout in layouts:  # the same layout: to the bit
        undisturbed = load_file(tmp_path / f"{layout}.safetensors")
        found = load_file(tmp_path / f"{layout} to {layout}.safetensors")
        assert all(found[name].equal(weight) for name, weight in undisturbed.items())
