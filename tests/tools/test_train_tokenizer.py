import json

import pytest
from tokenizers import Tokenizer as FastTokenizer

from mhmoe_mm.inputs.tokenization import Tokenizer
from tests.tools.making import (
    LANGUAGES,
    build_folder,
    build_shapes,
    image_folder,
    openmoji_members,
    samples_in,
    write_zip,
)
from tools.build_shards.cli import main as build
from tools.train_tokenizer import main

TEXTS = [
    "a small red circle above a large blue square",
    "Größe, où est l'été? ¡mañana!",
    "👩🏽‍🚀 ☺ 日本語 العربية",
    "two  blanks, a\ttab and </s> written out",
    "",
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes")
    assert build_shapes(out, "--train", "211", "--val", "31", "--test", "0") == 0
    return out


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji")
    path = write_zip(folder / "emoji.zip", openmoji_members(23))
    assert build(["openmoji", str(path), "--out", str(folder)]) == 0
    return folder


def test_any_text_comes_back_from_its_tokens(shapes, tmp_path):
    path = tmp_path / "tokenizer.json"
    assert main([str(shapes), "--out", str(path)]) == 0
    tokenizer = Tokenizer(path)
    captions = [text for sample in samples_in(shapes) for text in sample["captions"]["en"]]
    for text in [*TEXTS, *captions]:
        ids = tokenizer.encode(text, 1000)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk not in ids


def test_special_tokens_have_the_first_ids(shapes, tmp_path):
    path = tmp_path / "tokenizer.json"
    assert main([str(shapes), "--out", str(path)]) == 0
    tokenizer = Tokenizer(path)
    specials = (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk, tokenizer.mask)
    assert specials == (0, 1, 2, 3, 4)


def test_the_same_captions_give_the_same_file(shapes, tmp_path, capsys):
    paths = [tmp_path / name for name in ("one.json", "two.json")]
    for path in paths:
        assert main([str(shapes), "--vocab-size", "300", "--out", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert Tokenizer(paths[0]).sha256 in capsys.readouterr().out
    assert Tokenizer(paths[0]).vocab_size == 300


def test_a_large_vocabulary_makes_a_word_one_token_and_says_where_it_ends(shapes, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    assert main([str(shapes), "--vocab-size", "5000", "--out", str(path)]) == 0
    said = capsys.readouterr().out
    size = Tokenizer(path).vocab_size
    assert size < 5000
    assert f"support only {size} tokens, not 5,000" in said
    assert "1.000 tokens per word" in said
    # beginning, middle or end of a caption: the same token
    tokenizer = FastTokenizer.from_file(str(path))
    first, other = tokenizer.encode("red ring").ids
    assert tokenizer.encode("a ring red").ids[1:] == [other, first]


def test_only_the_training_split_and_the_asked_languages_are_read(emoji, tmp_path, capsys):
    out = tmp_path / "tokenizer.json"
    counts = {}
    for languages in (["de"], ["de", "fr"], []):
        options = ["--languages", *languages] if languages else []
        assert main([str(emoji), *options, "--out", str(out)]) == 0
        counts[len(languages)] = int(capsys.readouterr().out.split(" captions, ")[0].split()[-1])
    train = sum(sample["split"] == "train" for sample in samples_in(emoji))
    assert counts == {1: train, 2: 2 * train, 0: len(LANGUAGES) * train}


def test_captions_of_unknown_language_are_read_from_the_txt(tmp_path, capsys):
    assert build_folder(image_folder(tmp_path, 23), tmp_path / "out") == 0
    out = tmp_path / "tokenizer.json"
    assert main([str(tmp_path / "out"), "--languages", "und", "--out", str(out)]) == 0
    assert "caption" in FastTokenizer.from_file(str(out)).encode("caption").tokens[0]


def test_composed_and_decomposed_letters_are_the_same_tokens(emoji, tmp_path):
    plain, lower = tmp_path / "plain.json", tmp_path / "lower.json"
    assert main([str(emoji), "--out", str(plain)]) == 0
    assert main([str(emoji), "--lowercase", "--out", str(lower)]) == 0
    tokenizer = Tokenizer(plain)
    assert tokenizer.encode("e\u0301t", 9) == tokenizer.encode("\u00e9t", 9)
    assert tokenizer.encode("EMOJI", 9) != tokenizer.encode("emoji", 9)
    assert Tokenizer(lower).encode("EMOJI", 9) == Tokenizer(lower).encode("emoji", 9)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--vocab-size", "260"], "take 261"),
        (["--languages", "en", "it"], "no captions in it; it has de en es fr"),
        (["--out", "no/where/tokenizer.json"], "no/where"),
    ],
)
def test_bad_input_is_told_in_a_sentence(emoji, tmp_path, capsys, options, sentence):
    out = ["--out", str(tmp_path / "tokenizer.json")]
    assert main([str(emoji), *out, *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_shards_and_a_replaced_shard_are_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "tokenizer.json")]
    assert main([str(tmp_path / "nowhere"), *out]) == 2
    assert main([str(tmp_path), *out]) == 2
    assert build_shapes(tmp_path, "--train", "5", "--val", "0", "--test", "0") == 0
    with (tmp_path / "train" / "00000.tar").open("ab") as file:
        file.write(b"more")
    assert main([str(tmp_path), *out]) == 2
    error = capsys.readouterr().err
    for words in ("nowhere", "holds a .tar shard", "its index says"):
        assert words in error


def test_the_file_says_how_it_splits_text(emoji, tmp_path):
    out = tmp_path / "tokenizer.json"
    assert main([str(emoji), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["model"]["type"] == "BPE"
    assert [token["id"] for token in content["added_tokens"]] == [0, 1, 2, 3, 4]
    assert all(token["special"] for token in content["added_tokens"])
