"""SentencePiece models (https://github.com/google/sentencepiece) as a `tokenizer.json`.

The ids are those of XLM-R and BEiT-3, whose vocabularies come from such models:

    0 <s>   1 <pad>   2 </s>   3 <unk>   4 ... the pieces of the model in order   last <mask>

In a model that begins with its unknown, begin and end piece, piece n has the id n + 1.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from mhmoe_mm.inputs.tokenization import BLANK, SPECIALS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, PAIRS = 1, 2
FIRST = ("<s>", "<pad>", "</s>", "<unk>")


def from_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a model file.

    Raises:
        ValueError: where the file is no model, or one that cannot be converted faithfully.
    """
    model = _read(path)
    pieces = [piece for piece in model.pieces if piece.type not in (UNKNOWN, CONTROL)]
    _check(path, model, pieces)
    names = [*FIRST, *(piece.piece for piece in pieces), "<mask>"]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{path} has the pieces {', '.join(twice[:5])} twice, or as special ones.")
    bytes_too = any(piece.type == BYTE for piece in pieces)
    if model.trainer_spec.model_type == UNIGRAM:
        scores = [0.0] * len(FIRST) + [piece.score for piece in pieces] + [0.0]
        vocabulary = list(zip(names, scores, strict=True))
        tokenizer = Tokenizer(Unigram(vocabulary, FIRST.index("<unk>"), byte_fallback=bytes_too))
    else:
        tokenizer = Tokenizer(
            BPE(
                vocab={name: number for number, name in enumerate(names)},
                merges=_merges(pieces, names),
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=bytes_too,
            )
        )
    _set_steps(tokenizer, model, names)
    own = [piece.piece for piece in pieces if piece.type == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _read(path: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ValueError(
            f"{path} needs the packages sentencepiece and protobuf:"
            " pip install 'mhmoe-mm[sentencepiece]'."
        ) from error
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file.")
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is not a SentencePiece model ({error}).") from error
    return model


def _check(path: Path, model: Any, pieces: list[Any]) -> None:
    reasons = {
        "it has no pieces": not pieces,
        "it is neither of unigrams nor of byte pairs": model.trainer_spec.model_type
        not in (UNIGRAM, PAIRS),
        "it marks the ends of words": model.trainer_spec.treat_whitespace_as_suffix,
        "it keeps blanks as they are": not model.normalizer_spec.escape_whitespaces,
        "it has unused pieces": any(piece.type == UNUSED for piece in pieces),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{path} cannot be converted: {reason}.")


def _merges(pieces: list[Any], names: list[str]) -> list[tuple[str, str]]:
    """The pairs that each piece may be made of, those of the best pieces first."""
    place = {name: number for number, name in enumerate(names)}
    best_first = sorted(
        (piece for piece in pieces if piece.type == NORMAL), key=lambda piece: -piece.score
    )
    merges: list[tuple[str, str]] = []
    for piece in best_first:
        text = piece.piece
        pairs = [(text[:at], text[at:]) for at in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in place and pair[1] in place]
        merges += sorted(known, key=lambda pair: (place[pair[0]], place[pair[1]]))
    return merges


def _set_steps(tokenizer: Tokenizer, model: Any, names: list[str]) -> None:
    """Normalizer, pre-tokenizer and decoder."""
    spec = model.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
    splits = []
    if model.trainer_spec.model_type == UNIGRAM:
        # The special tokens are in its vocabulary: it must not see them whole where a text spells
        # them, for that is plain text.
        inner = "|".join(name.strip("</>") for name in SPECIALS)
        splits.append(pre_tokenizers.Split(Regex(f"<(?=/?(?:{inner})>)"), "isolated"))
    if not any(BLANK in name[1:] for name in names):
        splits.append(pre_tokenizers.Split(BLANK, "merged_with_next"))
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    back = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)
