import io
import random

import pytest

from mhmoe_mm.inputs.tokenization import Tokenizer
from tools.train_tokenizer.cli import main

sentencepiece = pytest.importorskip("sentencepiece")

WORDS = ["the", "a", "red", "green", "blue", "big", "small", "circle", "square", "star", "left"]
WORDS += ["Größe", "été", "mañana", "左", "右", "of"]
TEXTS = [
    "the red star",
    "  two   blanks, a\ttab ",
    "Größe e\u0301te\u0301 ﬁne ½",
    "日本語 👩🏽‍🚀",
    "<s> </s> a<pad>b <unk> <mask>",
    "x",
    "",
]


def sentences(count: int = 500) -> list[str]:
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(2, 11))) + "." for _ in range(count)]


def trained(path, **options):
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=stream,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 120, **options},
    )
    path.write_bytes(stream.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())


def converted(model, tmp_path) -> Tokenizer:
    out = tmp_path / "tokenizer.json"
    assert main(["--from-sentencepiece", str(model), "--out", str(out)]) == 0
    return Tokenizer(out)


def unknown_once(ids: list[int]) -> list[int]:
    """Without repeated <unk>: where a text spells a special token, a run of them may be cut."""
    return [i for i, before in zip(ids, [-1, *ids], strict=False) if not i == before == 3]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_a_converted_model_cuts_as_the_model_does_with_the_ids_of_xlm_r(
    tmp_path, kind, fallback, plain
):
    options = {"byte_fallback": fallback, "vocab_size": 400 if fallback else 120}
    if plain:
        options |= {
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
        }
    model = trained(tmp_path / "own.model", model_type=kind, **options)
    tokenizer = converted(tmp_path / "own.model", tmp_path)
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert tokenizer.mask == tokenizer.vocab_size - 1 == model.get_piece_size() + 1
    for text in [*TEXTS, *sentences(50)]:
        expected = [3 if model.is_unknown(i) else i + 1 for i in model.encode(text)]
        (ids,) = tokenizer.encode_documents([text])
        assert unknown_once(ids) == unknown_once(expected), text
        if 3 not in expected:
            assert tokenizer.decode(expected) == model.decode([i - 1 for i in expected])


def test_a_model_is_a_tokenizer_wherever_one_is_named(tmp_path):
    trained(tmp_path / "own.spm")
    direct, file = Tokenizer(tmp_path / "own.spm"), converted(tmp_path / "own.spm", tmp_path)
    assert (direct.sha256, direct.content) == (file.sha256, file.content)
    assert direct.encode("the red star", 11) == file.encode("the red star", 11)
    assert Tokenizer(direct.content).sha256 == direct.sha256  # as a checkpoint keeps it
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        Tokenizer(write(tmp_path / "bad.spm", b"no model"))


def write(path, content: bytes):
    path.write_bytes(content)
    return path


def test_a_model_of_64000_pieces_has_the_ids_of_beit3(tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    trained(tmp_path / "own.spm")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((tmp_path / "own.spm").read_bytes())
    while len(model.pieces) < 64000:
        model.pieces.add(piece=f"\u2581never{len(model.pieces)}", score=-99.0)
    tokenizer = Tokenizer(write(tmp_path / "beit3.spm", model.SerializeToString()))
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert (tokenizer.mask, tokenizer.vocab_size) == (64001, 64002)
    whole = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    assert tokenizer.encode_documents(["the red star"]) == [
        [i + 1 for i in whole.encode("the red star")]
    ]


def test_the_bytes_of_its_tokens_are_those_of_the_text_and_the_blank_in_front(tmp_path):
    trained(tmp_path / "own.model", byte_fallback=True, vocab_size=400)
    tokenizer = converted(tmp_path / "own.model", tmp_path)
    for text in ["the red star", "Größe 日本", "👩🏽‍🚀"]:
        (ids,) = tokenizer.encode_documents([text])
        assert sum(tokenizer.token_bytes[i] for i in ids) == len(f" {text}".encode())


def test_pieces_of_the_user_are_never_cut(tmp_path):
    model = trained(tmp_path / "own.model", user_defined_symbols=["[red]"])
    tokenizer = converted(tmp_path / "own.model", tmp_path)
    wanted = model.piece_to_id("[red]") + 1
    (ids,) = tokenizer.encode_documents(["a [red] star"])
    assert ids.count(wanted) == 1


def test_what_cannot_be_converted_is_told_in_a_sentence(tmp_path, capsys):
    out = ["--out", str(tmp_path / "tokenizer.json")]
    (tmp_path / "bad.model").write_bytes(b"no model")
    assert main(["--from-sentencepiece", str(tmp_path / "bad.model"), *out]) == 2
    assert "bad.model is not a SentencePiece model" in capsys.readouterr().err
    assert main(["--from-sentencepiece", str(tmp_path / "none.model"), *out]) == 2
    assert "does not exist" in capsys.readouterr().err
    trained(tmp_path / "own.model", treat_whitespace_as_suffix=True)
    assert main(["--from-sentencepiece", str(tmp_path / "own.model"), *out]) == 2
    assert "cannot be converted: it marks the ends of words" in capsys.readouterr().err
    trained(tmp_path / "word.model", model_type="word", vocab_size=30)
    assert main(["--from-sentencepiece", str(tmp_path / "word.model"), *out]) == 2
    assert "neither of unigrams nor of byte pairs" in capsys.readouterr().err
    assert main([str(tmp_path), "--from-sentencepiece", str(tmp_path / "own.model"), *out]) == 2
    assert "or --from-sentencepiece FILE" in capsys.readouterr().err
    assert not (tmp_path / "tokenizer.json").exists()
