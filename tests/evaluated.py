"""What evaluates a tiny checkpoint with the program."""

from pathlib import Path

import yaml

from tests.datamodules.conftest import write_tar
from tests.trained import Trained, configuration

IMAGES = ("png", "jpg", "webp")


def configured(trained: Trained, folder: Path) -> Path:
    """A run file in `folder` that tests and predicts on the shards that the task was trained on."""
    content = configuration(trained.kind, trained.moved)
    data = content["data"]["init_args"]
    shards = {**data["val"], "shards": str(trained.moved.parent / "shards")}
    data |= {"train": None, "val": shards, "test": shards}
    content["trainer"]["default_root_dir"] = "runs"
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def damaged(trained: Trained, folder: Path, number: int) -> Path:
    """The same shards with the images of one sample cut off half-way."""
    samples = {key: dict(content) for key, content in trained.samples.items()}
    content = samples[f"{number:09d}"]
    for name in content:
        if name.endswith(IMAGES):
            content[name] = content[name][: len(content[name]) // 2]
    write_tar(folder / "00000.tar", samples)
    return folder
