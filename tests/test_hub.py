"""A hub gets and gives what was exported, and the network is asked only when that is said."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from PIL import Image

import mhmoe_mm
from mhmoe_mm.checkpoint.__main__ import main
from tests.checkpoint.released import drawn
from tests.checkpoint.test_import_command import write

RED = Image.new("RGB", (23, 31), (200, 30, 10))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    file, out = write(tmp_path / "a.pth", drawn("base", "imagenet")), tmp_path / "model"
    assert main([file, "--num-heads", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder of a hub that stands in for the real one; its cache is empty."""
    place = tmp_path / "hub"

    class Api:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            (place / name).mkdir(parents=True, exist_ok=exist_ok)
            (place / "private").write_text(str(private))

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message) -> str:
            for name in allow_patterns:
                if (Path(folder_path) / name).exists():
                    shutil.copy(Path(folder_path) / name, place / repo_id / name)
            return f"commit of {repo_id}: {commit_message}"

    def download(name, revision, allow_patterns, local_files_only) -> str:
        if local_files_only:
            raise FileNotFoundError("no snapshot in the cache")
        return str(place / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return place


def test_a_model_goes_to_a_hub_and_comes_back(exported, hub):
    (exported / "notes.txt").write_text("mine")
    said = mhmoe_mm.push_to_hub(exported, "me/model")
    assert said == "commit of me/model: Upload model"
    assert (hub / "private").read_text() == "True"
    assert not (hub / "me/model/notes.txt").exists()
    with pytest.raises(ValueError, match=r"not in the hub's cache.*with download=True the hub"):
        mhmoe_mm.from_pretrained("me/model")
    model = mhmoe_mm.from_pretrained("me/model", download=True)
    assert model.classify(RED) == mhmoe_mm.load(exported).classify(RED)


def test_a_folder_needs_no_hub(exported, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert mhmoe_mm.from_pretrained(exported).classify(RED).isdecimal()


def test_what_is_no_model_or_was_changed_is_not_uploaded_and_not_taken(exported, hub):
    with pytest.raises(ValueError, match="is neither a folder here nor OWNER/NAME"):
        mhmoe_mm.from_pretrained("nowhere")
    mhmoe_mm.push_to_hub(exported, "me/model")
    (exported / "classes.json").write_text("[]")
    with pytest.raises(ValueError, match=r"classes\.json is not what was exported"):
        mhmoe_mm.push_to_hub(exported, "me/other")
    assert not (hub / "me/other").exists()
    (hub / "me/model/classes.json").write_text("[]")
    with pytest.raises(ValueError, match=r"classes\.json is not what was exported"):
        mhmoe_mm.from_pretrained("me/model", download=True)
    shutil.rmtree(hub / "me/model")
    with pytest.raises(ValueError, match="No such checkpoint"):
        mhmoe_mm.from_pretrained("me/model", download=True)


def test_the_card_has_a_head_that_hubs_read(exported):
    card = (exported / "README.md").read_text()
    head = huggingface_hub.ModelCard(card).data
    assert head.library_name == "mhmoe-mm"
    assert head.tags == ["mhmoe-mm"]
