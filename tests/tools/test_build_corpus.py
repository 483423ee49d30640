import gzip
import hashlib
import json
import random
import sys
from collections import Counter

import pytest
from safetensors.numpy import load_file

from mhmoe_mm.inputs.tokenization import Tokenizer
from tests.datamodules.text_files import letter_tokenizer, some_texts
from tools.build_corpus.cli import main

pyarrow = pytest.importorskip("pyarrow")
zstandard = pytest.importorskip("zstandard")
from pyarrow import parquet  # noqa: E402

TEXTS = [text.replace("\n", " ") + "z" for text in some_texts(37, seed=5)]
TEXTS += ["é\u2028é", " a blank on each side ", "e\u0301 is not composed"]
LINES = "\n".join(TEXTS).encode()
RECORDS = "\n".join(json.dumps({"id": 1, "body": text}) for text in TEXTS).encode()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    letters = "".join(sorted(set("".join([*TEXTS, "\nABC,.:"]))))
    return letter_tokenizer(tmp_path_factory.mktemp("letters") / "tokenizer.json", letters)


@pytest.fixture
def build(tokenizer, tmp_path):
    def run(*options, out="out"):
        return main(["--tokenizer", str(tokenizer), "--out", str(tmp_path / out), *options])

    return run


def documents(path, tokenizer) -> list[str]:
    """The texts of a token file, read back by another reader."""
    content = load_file(path)
    reader = Tokenizer(tokenizer)
    ends = content["document_end"].tolist()
    parts = [
        content["token"][start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert all(part[-1] == reader.eos for part in parts)
    return [reader.decode(part[:-1]) for part in parts]


def several_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", LINES),
        ("a.txt", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n") + b"\r\n"),
        ("a.txt.gz", gzip.compress(LINES + b"\n")),
        ("a.en.gz", gzip.compress(LINES[:99]) + gzip.compress(LINES[99:])),
        ("a.txt.zst", several_frames(LINES)),
        ("a.jsonl", RECORDS + b"\n\n"),
        ("a.jsonl.gz", gzip.compress(RECORDS)),
        ("a.jsonl.zst", zstandard.compress(RECORDS)),
    ],
)
def test_every_kind_of_file_gives_the_same_documents(build, tokenizer, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert build("--train", f"en={tmp_path / name}", "--field", "body") == 0
    assert documents(tmp_path / "out" / "train" / "en.safetensors", tokenizer) == TEXTS


@pytest.mark.parametrize("rows", [1000, 7])
def test_parquet_gives_them_too_in_any_row_groups(build, tokenizer, tmp_path, rows):
    table = pyarrow.table({"id": range(len(TEXTS)), "body": TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=rows)
    assert build("--train", f"en={tmp_path / 'a.parquet'}", "--field", "body") == 0
    assert documents(tmp_path / "out" / "train" / "en.safetensors", tokenizer) == TEXTS


def test_a_line_may_be_longer_than_what_is_read_at_once(build, tokenizer, tmp_path):
    texts = ["ab" * 2**20, "c", "abc" * 2**19]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert build("--train", f"en={tmp_path / 'a.txt'}") == 0
    assert documents(tmp_path / "out" / "train" / "en.safetensors", tokenizer) == texts


def test_the_card_counts_what_is_there_and_names_what_it_was_made_of(build, tokenizer, tmp_path):
    for language in ("en", "de"):
        (tmp_path / f"{language}.txt").write_bytes(LINES)
    sources = [f"{code}={tmp_path / f'{code}.txt'}" for code in ("en", "de")]
    (tmp_path / "more.txt").write_text("abc\n")
    assert build("--train", *sources, "--val", f"en={tmp_path / 'more.txt'}") == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["tokenizer"]["sha256"] == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    assert card["inputs"]["en.txt"] == hashlib.sha256(LINES).hexdigest()
    assert {s: list(languages) for s, languages in card["splits"].items()} == {
        "train": ["en", "de"],
        "val": ["en"],
    }
    about = card["splits"]["train"]["de"]
    assert about["documents"] == len(TEXTS)
    assert about["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert about["tokens"] == sum(map(len, TEXTS)) + len(TEXTS)
    assert about["unknown"] == 0
    path = tmp_path / "out" / "train" / "de.safetensors"
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(p.name for p in path.parent.iterdir()) == ["de.safetensors", "en.safetensors"]


def test_the_same_inputs_give_the_same_bytes(build, tmp_path):
    (tmp_path / "a.txt").write_bytes(LINES)
    options = ["--train", f"en={tmp_path / 'a.txt'}", "--val-share", "0.3"]
    assert build(*options, out="one") == build(*options, out="two") == 0
    for name in ("card.json", "train/en.safetensors", "val/en.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_shares_divide_the_documents_by_their_text(build, tokenizer, tmp_path):
    draw = random.Random(1)
    texts = ["".join(draw.choices("ABC", k=11)) for _ in range(900)]
    (tmp_path / "a.txt").write_text("\n".join([*texts, *texts]))
    options = ["--val-share", "0.2", "--test-share", "0.1"]
    assert build("--train", f"en={tmp_path / 'a.txt'}", *options) == 0
    found = {
        split: documents(tmp_path / "out" / split / "en.safetensors", tokenizer)
        for split in ("train", "val", "test")
    }
    assert sum(map(Counter, found.values()), Counter()) == Counter([*texts, *texts])
    assert not set(found["train"]) & set(found["val"]) | set(found["val"]) & set(found["test"])
    for split, share in {"train": 0.7, "val": 0.2, "test": 0.1}.items():
        assert len(found[split]) / 1800 == pytest.approx(share, abs=0.05)


def test_a_tail_of_a_whole_file_is_its_last_letters(build, tokenizer, tmp_path):
    text = "A first line.\n\nB: another,\n" * 13
    (tmp_path / "a.txt").write_text(text)
    source = ["--train", f"en={tmp_path / 'a.txt'}", "--whole-files"]
    assert build(*source, "--val-tail", "0.1") == 0
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        assert documents(tmp_path / "out" / split / "en.safetensors", tokenizer) == [part]


BROKEN = {
    "empty.txt": (b"a\n  \nb\n", "empty.txt line 2 is empty"),
    "latin.txt": (b"a\nb\xe4c\n", "latin.txt line 2 is not UTF-8 (byte 2 of it)"),
    "json.jsonl": (b'{"text": "a"}\n{"text": \n', "json.jsonl line 2 is not JSON"),
    "list.jsonl": (b'{"text": "a"}\n["b"]\n', "list.jsonl line 2 is not an object"),
    "field.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', 'field.jsonl line 2 must have "text"'),
    "number.jsonl": (b'{"text": "a"}\n{"text": 5}\n', 'line 2 must have "text", a text, not 5'),
    "half.jsonl": (b'{"text": "a"}\n{"text": "\\ud800"}\n', "half of a surrogate pair"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_document_is_refused_by_its_line_or_skipped_and_counted(
    build, tokenizer, tmp_path, capsys, name
):
    content, sentence = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert build("--train", f"en={tmp_path / name}") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "--on-error skip" in error
    assert not list((tmp_path / "out").rglob("*.*"))
    assert build("--train", f"en={tmp_path / name}", "--on-error", "skip") == 0
    assert documents(tmp_path / "out" / "train" / "en.safetensors", tokenizer)[0] == "a"
    skipped = json.loads((tmp_path / "out" / "card.json").read_text())["skipped"]
    assert skipped["count"] == 1
    assert sentence in skipped["first"][0]["reason"]


def test_nothing_is_left_of_a_corpus_of_which_one_language_is_broken(build, tmp_path):
    (tmp_path / "en.txt").write_bytes(LINES)
    (tmp_path / "de.txt").write_bytes(LINES + b"\n\n")
    assert build("--train", *(f"{code}={tmp_path / f'{code}.txt'}" for code in ("en", "de"))) == 2
    assert not list((tmp_path / "out").rglob("*.*"))


def test_rows_of_parquet_without_text_and_other_columns_are_told(build, tmp_path, capsys):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None], "n": [1, 2]}), path)
    assert build("--train", f"en={path}") == 2
    assert "a.parquet row 2 has no text (null)" in capsys.readouterr().err
    assert build("--train", f"en={path}", "--field", "body") == 2
    assert "has no column 'body'; it has: text, n" in capsys.readouterr().err
    assert build("--train", f"en={path}", "--field", "n") == 2
    assert "is of int64, not of texts" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-9])
    assert build("--train", f"en={path}") == 2
    assert "cannot be read as parquet" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_file_that_is_cut_short_is_refused_even_where_lines_may_be_skipped(
    build, tmp_path, capsys, name
):
    data = random.Random(0).randbytes(9000).hex().encode()
    whole = gzip.compress(data) if name.endswith("gz") else zstandard.compress(data)
    for content in (whole[:-50], b"nothing of the kind"):
        (tmp_path / name).write_bytes(content)
        assert build("--train", f"en={tmp_path / name}", "--on-error", "skip") == 2
        assert f"{name} is" in capsys.readouterr().err
        assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "at least one of --train, --val and --test"),
        (["--train", "a.txt"], "give LANGUAGE=FILE"),
        (["--train", "../x=a.txt"], "give LANGUAGE=FILE"),
        (["--train", "en=none.txt"], "none.txt does not exist"),
        (["--train", "en=a.pdf"], "a.pdf is none of .txt"),
        (["--train", "en=a.txt", "--val", "en=a.txt"], "is given twice"),
        (["--train", "en=a.txt", "--val", "en=b.txt", "--val-share", "0.1"], "leave out"),
        (["--train", "en=a.txt", "--val-share", "1"], "leave something to train on"),
        (["--train", "en=a.txt", "--val-share", "nan"], "leave something to train on"),
        (["--train", "en=a.txt", "--val-share", "0.1", "--val-tail", "0.1"], "cannot be used"),
        (["--train", "en=c.txt"], "no document for train"),
        (["--train", "en=a.txt", "--tokenizer", "none.json"], "none.json does not exist"),
    ],
)
def test_bad_options_are_told_in_a_sentence(
    build, tmp_path, monkeypatch, capsys, options, sentence
):
    monkeypatch.chdir(tmp_path)
    for name, content in {"a.txt": "a", "b.txt": "b", "c.txt": "", "a.pdf": "a"}.items():
        (tmp_path / name).write_text(content)
    assert build(*options) == 2
    assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_corpus_is_replaced_only_when_asked_and_other_data_never(build, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(LINES)
    for code in ("en", "de"):
        (tmp_path / f"{code}.txt").write_bytes(LINES)
    assert build("--train", f"en={tmp_path / 'en.txt'}", f"de={tmp_path / 'de.txt'}") == 0
    assert build("--train", f"en={tmp_path / 'a.txt'}") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert build("--train", f"en={tmp_path / 'a.txt'}", "--overwrite") == 0
    assert [p.name for p in (tmp_path / "out" / "train").iterdir()] == ["en.safetensors"]
    (tmp_path / "out" / "card.json").write_text('{"format": 1, "source": "folder"}')
    assert build("--train", f"en={tmp_path / 'a.txt'}", "--overwrite") == 2
    assert "other data than a corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "name"), [("zstandard", "a.txt.zst"), ("pyarrow", "a.parquet")]
)
def test_a_package_that_is_not_there_is_told(build, tmp_path, monkeypatch, capsys, package, name):
    (tmp_path / name).write_bytes(b"a")
    monkeypatch.setitem(sys.modules, package, None)
    assert build("--train", f"en={tmp_path / name}") == 2
    assert f"needs the package {package}: pip install 'mhmoe-mm[text]'" in capsys.readouterr().err


def test_what_the_tokenizer_does_not_know_is_counted(build, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("abc 日本\n")
    assert build("--train", f"en={tmp_path / 'a.txt'}") == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["splits"]["train"]["en"]["unknown"] == 2
