import pytest

from mhmoe_mm.inputs.tokenization import Tokenizer
from tools.train_tokenizer.cli import main

CORPUS = ["a small red circle above a large blue square", "Größe, où est l'été?", "two  blanks"] * 9
TEXTS = [
    *CORPUS[:3],
    " starts with a blank, ends with two  ",
    "e\u0301 \u00e9 ﬁ",
    "\n\nlines\r\n\ttabs",
    "👩🏽‍🚀 日本語 العربية",
    "<s> </s> <pad><unk> <mask>",
    "",
]


@pytest.fixture
def files(tmp_path):
    for code in ("en", "de"):
        (tmp_path / f"train.{code}").write_text("\n".join(CORPUS))
    return [f"{code}={tmp_path / f'train.{code}'}" for code in ("en", "de")]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_lossless_tokenizer_gives_back_every_text_and_counts_its_bytes(files, tmp_path, kind):
    out = tmp_path / "tokenizer.json"
    options = ["--kind", kind, "--lossless", "--vocab-size", "300", "--out", str(out)]
    assert main([*files, *options]) == 0
    tokenizer = Tokenizer(out)
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    for text, ids in zip(TEXTS, tokenizer.encode_documents(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert not tokenizer.specials & set(ids)
        assert sum(tokenizer.token_bytes[i] for i in ids) == len(text.encode())


def test_a_tokenizer_of_characters_has_one_token_for_each_that_occurs(tmp_path):
    text = "First:\n\nSpeak é  日!\n"
    (tmp_path / "a.txt").write_text(text)
    out = tmp_path / "tokenizer.json"
    options = ["--kind", "characters", "--whole-files", "--out", str(out)]
    assert main([str(tmp_path / "a.txt"), *options]) == 0
    tokenizer = Tokenizer(out)
    assert tokenizer.vocab_size == 5 + len(set(text))
    (ids,) = tokenizer.encode_documents([text])
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert [tokenizer.token_bytes[i] for i in ids] == [len(c.encode()) for c in text]
    assert tokenizer.encode_documents(["Xk"]) == [[tokenizer.unk, ids[text.index("k")]]]


def test_text_files_give_the_tokenizer_that_the_same_lines_in_another_form_give(files, tmp_path):
    outs = [tmp_path / name for name in ("one.json", "two.json")]
    assert main([*files, "--out", str(outs[0])]) == 0
    (tmp_path / "both.txt").write_text("\n".join(CORPUS * 2))
    assert main([str(tmp_path / "both.txt"), "--out", str(outs[1])]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--kind", "characters", "--vocab-size", "300"], "characters has neither"),
        (["--kind", "unigram", "--vocab-size", "260"], "take 261"),
        (["--lossless", "--lowercase"], "exclude each other"),
        (["--languages", "en"], "of text files give those alone"),
        (["a.pdf"], "is none of .txt"),
        (["en=none.txt"], "none.txt does not exist"),
    ],
)
def test_bad_input_is_told_in_a_sentence(files, tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pdf").write_text("a")
    out = ["--out", str(tmp_path / "tokenizer.json")]
    assert main([*files, *options, *out]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "tokenizer.json").exists()


def test_broken_lines_are_refused_or_skipped_and_told(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"good\n\nb\xe4d\nfine\n")
    arguments = [str(tmp_path / "a.txt"), "--out", str(tmp_path / "tokenizer.json")]
    assert main(arguments) == 2
    assert "a.txt line 2 is empty" in capsys.readouterr().err
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert "2 skipped; the first: " in capsys.readouterr().out
