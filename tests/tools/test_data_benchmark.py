"""All pipelines of the data benchmark do the same work, and its table says what was measured."""

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from datamodules.transforms import View, training_view
from mhmoe_mm.batches import normalized
from mhmoe_mm.inputs.images import decode_image
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.inputs.tokenization import Tokenizer
from tools.benchmarks import data, data_turns
from tools.benchmarks.data_corpus import make_corpus
from tools.benchmarks.data_pipelines import (
    DECODE,
    IMAGES,
    OURS,
    PIPELINES,
    REFERENCE,
    Setting,
    Work,
    missing,
    settings_of,
)

COUNT, BATCH, SIZE = 23, 5, 16
SMALL = ["--images", "31", "--side", "37", "29", "--size", "16", "--batch-size", "3"]
SMALL += ["--workers", "0", "--threads", "1", "--repeats", "2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    folder = tmp_path_factory.mktemp("corpus")
    corpus = make_corpus(folder / "shards", COUNT, 37, 29)
    return Work(corpus, folder, View(size=SIZE, patch=1), BATCH)


def test_the_corpus_is_a_function_of_its_seed(work, tmp_path):
    again = make_corpus(tmp_path / "again", COUNT, 37, 29)
    assert again.samples == work.corpus.samples
    assert len({image for image, _ in again.samples}) == COUNT
    other = make_corpus(tmp_path / "other", COUNT, 37, 29, seed=1)
    assert not set(other.samples) & set(again.samples)


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in (DECODE, IMAGES)])
def test_every_pipeline_ends_with_normalised_images_and_all_captions(name, work):
    if lacks := missing(name):
        pytest.skip(f"{lacks[0]} is not installed")
    batches = list(PIPELINES[name].batches(work, Setting()))
    assert len(batches) == COUNT // BATCH
    for pixel, token in batches:
        assert pixel.dtype == torch.float32
        assert pixel.shape == (BATCH, 3, SIZE, SIZE)
        assert -1 <= pixel.min() < -0.1 < 0.1 < pixel.max() <= 1
        assert len(token) == BATCH
    texts = Texts(Tokenizer(work.corpus.tokenizer), 64)
    known = {tuple(texts.tokenizer.encode(text, 64)) for _, text in work.corpus.samples}
    read = [tuple(t for t in row if t != 1) for _, token in batches for row in token.tolist()]
    assert set(read) <= known
    assert len(set(read)) == len(read), "a sample came twice"


def test_the_ceiling_decodes_as_many(work):
    found = list(PIPELINES[DECODE].batches(work, Setting(threads=2)))
    assert [len(batch) for batch in found] == [BATCH] * (COUNT // BATCH)
    assert found[0][0].shape == (3, 29, 37)


def test_images_alone_are_seen_as_a_training_sees_them(work):
    found = list(PIPELINES[IMAGES].batches(work, Setting(threads=2)))
    assert len(found) == COUNT // BATCH
    for number, (pixel, _) in enumerate(found):
        jpeg = np.frombuffer(work.corpus.samples[number * BATCH][0], np.uint8).copy()
        wanted = training_view(decode_image(jpeg), work.view, random.Random(number * BATCH))
        assert torch.equal(pixel[:1], normalized(wanted[None]))


def test_settings_are_those_in_which_a_pipeline_can_work():
    assert settings_of(OURS, [0, 2], [1]) == [Setting(), Setting(0, 1), Setting(2)]
    assert settings_of(REFERENCE, [1, 2], [1]) == [Setting(1), Setting(2)]
    assert settings_of(DECODE, [0, 2], [1, 2]) == [Setting(0, 1), Setting(0, 2)]
    assert [str(s) for s in settings_of(OURS, [0, 1], [2])] == ["in line", "2 threads", "1 worker"]


def test_the_time_of_other_processes_counts():
    program = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        if sys.platform == "linux":
            assert data_turns._time_of(child.pid) > 0.3
    finally:
        child.kill()
        child.communicate()
    assert data_turns._time_of(child.pid) == 0
    before = data_turns.processor_time()
    while time.process_time() < before + 0.02:
        pass
    assert data_turns.processor_time() >= before + 0.02


def test_the_command_prints_ratios_and_writes_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "missing", lambda name: ["litdata"] if "litdata" in name else [])
    files = ["--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    chosen = ["--only", OURS, "litdata + PIL"]
    assert data.main([*SMALL, *files, *chosen]) == 0
    told = capsys.readouterr().out
    assert "litdata + PIL is left out: litdata is not installed." in told
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    named = [(row["pipeline"], row["setting"]) for row in rows]
    assert named == [
        (DECODE, "1 thread"), (OURS, "in line"), (OURS, "1 thread"), (REFERENCE, "in line")
    ]  # fmt: skip
    assert all(row["samples/s"] > 0 and row["CPU ms"] > 0 for row in rows)
    assert rows[0]["of decoding"] == 1
    assert rows[3]["x reference"] == 1
    assert rows[1]["x reference"] == pytest.approx(rows[1]["samples/s"] / rows[3]["samples/s"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--images", "29"], "--images 29: an epoch must have 10 batches of 3, that is 30 images"),
        (["--repeats", "0"], "are 1 or more"),
        (["--workers", "-1"], "are 0 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, sentence, capsys):
    with pytest.raises(SystemExit):
        data.main([*SMALL, *options])
    assert sentence in capsys.readouterr().err
