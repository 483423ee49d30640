"""The demo runs from nothing to its table and its page, with fewer steps."""

from pathlib import Path

import pytest

from tools import quickstart

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_prepares_trains_both_nets_and_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    assert quickstart.main(["--steps", "50"]) == 0
    shown = capsys.readouterr().out
    for line in ("masked text beside its image, accuracy", "experts active on text tokens"):
        assert line in shown
    for name in ("quickstart_mh_moe", "quickstart_sparsemoe"):
        heatmap = tmp_path / "runs" / name / "version_0" / "experts.png"
        assert heatmap.is_file()
        assert str(heatmap.relative_to(tmp_path)) in shown
    page = tmp_path / quickstart.REPORT
    assert str(quickstart.REPORT) in shown
    assert page.stat().st_size < 10e6
    text = page.read_text()
    assert "<title>Experts of MH-MoE against SparseMoE</title>" in text
    assert text.count('"png":') >= 2
