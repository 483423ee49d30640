"""Train a tokenizer on the captions of shards: `python -m tools.train_tokenizer DIR ...`.

It is a byte-level BPE: the same captions give the same file every time, and since its alphabet is
the 256 bytes, any text can be encoded, in every language and with every emoji.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tools.build_shards.errors import InputError, run_reporting
from tools.build_shards.files import write_whole
from tools.build_shards.progress import ProgressBar
from tools.build_shards.reading import read_samples, shards_of
from tools.build_shards.texts import TEXT_MEMBERS, captions_in

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256


def main(argv: list[str] | None = None) -> int:
    """Run train_tokenizer; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_reporting(lambda: _run(arguments), "Interrupted; no tokenizer was written.")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            f"--vocab-size {arguments.vocab_size}: the {len(SPECIAL_TOKENS)} special tokens and the"
            f" 256 bytes alone take {MIN_VOCAB_SIZE}."
        )
    if not arguments.out.parent.is_dir():
        raise InputError(f"{arguments.out.parent}, the folder of --out, does not exist.")
    texts = read_texts(arguments.folder, arguments.split, arguments.languages)
    tokenizer = train(texts, arguments.vocab_size, arguments.lowercase)
    content = tokenizer.to_str(pretty=True).encode()
    write_whole(arguments.out, content)
    size = tokenizer.get_vocab_size()
    print(f"{arguments.out}: {size:,} tokens, sha256 {hashlib.sha256(content).hexdigest()}")
    if size < arguments.vocab_size:
        print(
            f"The {len(texts):,} captions support only {size:,} tokens, not"
            f" {arguments.vocab_size:,}: no pair of tokens is left that occurs twice."
        )
    words = sum(len(text.split()) for text in texts)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = sum(len(text.ids) for text in encoded)
    longest = max(len(text.ids) for text in encoded)
    print(
        f"{len(texts):,} captions, {words:,} words, {tokens / words:.3f} tokens per word,"
        f" the longest caption has {longest} tokens"
    )
    return 0


def read_texts(folder: Path, split: str, languages: list[str] | None) -> list[str]:
    """All captions of a split in the given languages (default: all), in the order of the shards."""
    texts: list[str] = []
    seen: set[str] = set()
    shards = shards_of(folder, split)
    with ProgressBar("captions", len(shards), unit="shards") as bar:
        for shard in shards:
            for sample in read_samples(shard, TEXT_MEMBERS):
                captions = captions_in(sample)
                seen |= captions.keys()
                wanted = captions if languages is None else languages
                texts += [text for language in wanted for text in captions.get(language, [])]
            bar.advance()
    if lacking := set(languages or ()) - seen:
        raise InputError(
            f"{folder} has no captions in {' '.join(sorted(lacking))};"
            f" it has {' '.join(sorted(seen)) or 'none at all'}."
        )
    if not any(text.strip() for text in texts):
        raise InputError(f"{folder} holds no captions in its {split} shards.")
    return texts


def train(texts: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """A byte-level BPE tokenizer with the special tokens at ids 0 to 4."""
    tokenizer = Tokenizer(BPE())
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    # The blank put in front makes the first word of a caption the same token as anywhere else;
    # decoding takes it away again.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.train_tokenizer", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder made by build_shards, or of shards")
    add("--out", type=Path, required=True, metavar="FILE", help="for example DIR/tokenizer.json")
    add("--vocab-size", type=int, default=512, metavar="N", help="at most so many tokens")
    add("--languages", nargs="+", metavar="CODE", help="language codes (default: all there are)")
    add("--split", default="train", help="the split that is read (default train)")
    add("--lowercase", action="store_true", help="also lower-case (default: only NFC)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
