"""The texts that a tokenizer is trained on: captions of shards, or documents of text files."""

from collections.abc import Iterator
from pathlib import Path

from tools.build_corpus.documents import Reading, Skipped, kind_of, read_documents
from tools.build_corpus.options import named_file
from tools.build_shards.errors import InputError
from tools.build_shards.progress import ProgressBar
from tools.build_shards.reading import read_samples, shards_of
from tools.build_shards.texts import TEXT_MEMBERS, captions_in


class Documents:
    """The documents of some text files; each pass reads them anew, so they need not fit in memory.

    Args:
        sources: `LANGUAGE=FILE`, or the file alone where its name says what it is.
        reading: how files are read.
        skip: go on without what is no document.
    """

    def __init__(self, sources: list[str], reading: Reading, skip: bool):
        self.files = [
            ("und", Path(source)) if "=" not in source else named_file(source, "")
            for source in sources
        ]
        for language, path in self.files:
            kind_of(path, language)
        self.reading = reading
        self.skip = skip
        self.skipped = Skipped(skip)
        """Of the pass that was begun last."""

    def __iter__(self) -> Iterator[str]:
        self.skipped = Skipped(self.skip)
        with ProgressBar("documents", len(self.files), unit="files") as bar:
            for language, path in self.files:
                yield from read_documents(path, language, self.reading, self.skipped)
                bar.advance()


def read_captions(folder: Path, split: str, languages: list[str] | None) -> list[str]:
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
