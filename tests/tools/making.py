"""Tiny sources for the tests of the tools, and ways to look at what was built."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from random import Random

from PIL import Image

from tools.build_shards.cli import main

LANGUAGES = ("en", "de", "fr", "es")


def picture(seed: int, width: int = 13, height: int = 11, image_format: str = "PNG") -> bytes:
    """A noisy picture, different for every seed."""
    noise = Random(seed).randbytes(3 * width * height)
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), noise).save(out, image_format)
    return out.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def openmoji_members(count: int = 7) -> dict[str, bytes]:
    """What OpenMoji's zip holds, with `count` images; every third one is in the test split."""
    lines = ["\t".join(["split", "image", *LANGUAGES])]
    members = {}
    for i in range(count):
        split = "test" if i % 3 == 2 else "train"
        captions = [f"{language} emoji {i}" for language in LANGUAGES]
        lines.append("\t".join([split, f"1F{i:03d}.png", *captions]))
        members[f"images/1F{i:03d}.png"] = picture(i)
    table = "\n".join(lines) + "\n"
    return {"captions.tsv": table.encode(), **members, "LICENSE.txt": b"a licence"}


def easy_vqa_members(train: int = 5, test: int = 2) -> dict[str, bytes]:
    """What easy-VQA's zip holds: image i of a split has i + 1 questions."""
    members = {"README.md": b"about", "answers.txt": b"circle\nblue\nyes\nno\n"}
    for split, count in {"train": train, "test": test}.items():
        questions = [[f"question {n}?", "yes", i] for i in range(count) for n in range(i + 1)]
        members[f"{split}/questions.json"] = json.dumps(questions).encode()
        for i in range(count):
            members[f"{split}/images/{i}.png"] = picture(100 * count + i)
    return members


def image_folder(folder: Path, count: int = 7) -> Path:
    """Images a0.png, a1.png, ... and captions.tsv beside them; returns the folder of the images."""
    images = folder / "images"
    images.mkdir(parents=True)
    for i in range(count):
        (images / f"a{i}.png").write_bytes(picture(i))
    rows = [f"a{i}.png\tcaption {i}" for i in range(count)]
    (folder / "captions.tsv").write_text("\n".join(["image\tcaption", *rows]) + "\n")
    return images


def build_folder(images: Path, out: Path, *options: str) -> int:
    captions = images.parent / "captions.tsv"
    return main(["folder", str(images), "--captions", str(captions), "--out", str(out), *options])


def build_shapes(out: Path, *options: str) -> int:
    return main(["shapes", "--out", str(out), *options])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def samples_in(folder: Path) -> list[dict]:
    """All samples below a folder, in the order of keys, read by tarfile and not by our index."""
    samples: dict[str, dict] = {}
    for shard in sorted(folder.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                sample = samples.setdefault(key, {"split": shard.parent.name, "shard": shard.name})
                file = tar.extractfile(member)
                assert file is not None
                sample[extension] = file.read()
    for sample in samples.values():
        sample.update(json.loads(sample["json"]))
    return [samples[key] for key in sorted(samples)]


def card_of(folder: Path) -> dict:
    return json.loads((folder / "card.json").read_text())
