import hashlib
import json
from pathlib import Path

import pytest

from mhmoe_mm.inputs.tokenization import Tokenizer


def test_a_text_is_framed_and_cut_to_its_length(tokenizer_path):
    tokenizer = Tokenizer(tokenizer_path)
    ids = tokenizer.encode("a red star", 64)
    assert (ids[0], ids[-1], len(ids)) == (tokenizer.bos, tokenizer.eos, 5)
    assert tokenizer.decode(ids) == "a red star"
    assert tokenizer.encode("a red star", 4) == [*ids[:3], tokenizer.eos]


def test_a_whole_text_is_its_tokens_alone_with_the_characters_read_so_far(tokenizer_path):
    tokenizer = Tokenizer(tokenizer_path)
    ids, ends = tokenizer.encode_whole("a  red </s> star")
    assert ids == tokenizer.encode("a  red </s> star", 64)[1:-1]
    assert ends == [1, 6, 9, 10, 11, 16]
    assert tokenizer.encode_whole("") == ([], [])


def test_special_tokens_written_in_a_text_are_plain_text(tokenizer_path):
    tokenizer = Tokenizer(tokenizer_path)
    ids = tokenizer.encode("red </s> <mask> star <pad>", 64)
    assert ids.count(tokenizer.eos) == 1
    assert not {tokenizer.mask, tokenizer.pad} & set(ids)


def test_special_tokens_are_found_by_name(tokenizer_path, tmp_path):
    content = json.loads(Path(tokenizer_path).read_text())
    vocabulary = content["model"]["vocab"]
    shifted = {word: len(vocabulary) - 1 - number for word, number in vocabulary.items()}
    content["model"]["vocab"] = shifted
    for token in content["added_tokens"]:
        token["id"] = shifted[token["content"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = Tokenizer(path)
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    found = (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk, tokenizer.mask)
    assert found == tuple(shifted[name] for name in names)
    assert tokenizer.vocab_size == len(vocabulary)
    assert sorted([*tokenizer.ordinary, *found]) == list(range(len(vocabulary)))
    assert tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_no_tokenizer_is_refused(tokenizer_path, tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*tools\.train_tokenizer"):
        Tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json is not a tokenizer"):
        Tokenizer(tmp_path / "bad.json")
    content = Path(tokenizer_path).read_text().replace("<mask>", "<hidden>")
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match="lacks the special tokens <mask>"):
        Tokenizer(tmp_path / "other.json")


def test_a_length_without_room_for_a_token_is_refused(tokenizer_path):
    with pytest.raises(ValueError, match="at least 3"):
        Tokenizer(tokenizer_path).encode("a", 2)
