"""The data module for language modelling: token files in, `LanguageBatch`es out.

train / val / test   where the token files lie, how long a row is
   -> TokenFile    documents of one language, mapped into memory    token_files.py
   -> PackedRows   documents cut into rows, every token once        packing.py
   -> Order        which row comes when, the mixture of languages   order.py, mixture.py
   -> Steps        position -> batch                                steps.py
"""

import random
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from datamodules.decoders import Limits
from datamodules.loading import Loading
from datamodules.mixture import MixedOrder, Mixture
from datamodules.module import SPLITS_OF, EpochSize, ShardedDataModule
from datamodules.order import NaturalOrder, Order, ShuffledOrder
from datamodules.packing import EpochOrder, LanguageCollate, LanguageRow, PackedRows
from datamodules.steps import Feed, only_part
from datamodules.token_files import TokenFile, expand_files
from mhmoe_mm.inputs.texts import Texts

MIXTURE, LOADING = Mixture(), Loading()
PART = "text"
BLOCK = 2**16
"""Rows that are shuffled as a shard: `loading.window` of these are in memory as numbers."""


@dataclass(frozen=True)
class TextSource:
    """Where texts come from.

    Args:
        files: a folder of token files, a glob, a file, or a list of these.
        batch_size: rows a step on each rank.
        context: tokens a row.
        languages: codes of those that are read; None: all there are.
    """

    files: str | list[str]
    batch_size: int
    context: int
    languages: list[str] | None = None

    def __post_init__(self):
        if self.batch_size < 1 or self.context < 1:
            raise ValueError(
                "batch_size and context must be at least 1, got "
                f"{self.batch_size} and {self.context}."
            )
        if self.languages == []:
            raise ValueError("languages must name at least one language, or be null for all.")


class LanguageDataModule(ShardedDataModule):
    """Batches of texts for language modelling; see docs/text_data.md.

    Args:
        train: what to train on.
        tokenizer: path of the `tokenizer.json` that the token files were made with.
        val: what to validate on; every token exactly once over all ranks.
        test: what to test on, likewise.
        mixture: how often each language is read in training.
        shuffle_documents: put documents in another order in each epoch of training; takes 16 bytes
            of memory a document.
        loading: workers and threads; `window` times 65,536 rows are shuffled among each other.
        seed: of the order.
    """

    def __init__(
        self,
        train: TextSource | None,
        tokenizer: str,
        val: TextSource | None = None,
        test: TextSource | None = None,
        mixture: Mixture = MIXTURE,
        shuffle_documents: bool = True,
        loading: Loading = LOADING,
        seed: int = 0,
    ):
        sources = {"train": train, "val": val, "test": test}
        if not any(sources.values()):
            raise ValueError("At least one of train, val and test must have a source.")
        super().__init__(sources, tokenizer, Limits(), loading, only_part)
        self.mixture = mixture
        self.shuffle_documents = shuffle_documents
        self.seed = seed
        self.languages: tuple[str, ...] = ()
        """Codes of all languages of the splits that were set up, those of training first."""
        self._files: dict[str, list[TokenFile]] = {}

    @property
    def texts(self) -> Texts:
        """How the texts of an evaluation are read."""
        source = self.sources["val"] or self.sources["test"] or self.sources["train"]
        return Texts(self.tokenizer, source.context)

    def setup(self, stage: str | None = None) -> None:
        """Open the token files and check that they can be used; once for each split."""
        for split in SPLITS_OF.get(stage or "", ("train", "val", "test")):
            if self.sources[split] is not None and split not in self._files:
                self._files[split] = self._open(split)
                codes = (file.language for file in self._files[split])
                self.languages = tuple(dict.fromkeys([*self.languages, *codes]))
        super().setup(stage)

    def _open(self, split: str) -> list[TokenFile]:
        """The token files of a split, those of a language side by side."""
        source: TextSource = self.sources[split]
        files = [TokenFile(path) for path in expand_files(source.files)]
        there = sorted({file.language for file in files})
        if lacking := set(source.languages or ()) - set(there):
            raise ValueError(
                f"{split}.languages: there is no token file in {' '.join(sorted(lacking))}; "
                f"{source.files} has {' '.join(there)}."
            )
        wanted = source.languages or there
        files = [file for file in files if file.language in wanted]
        for file in files:
            if file.tokenizer_sha256 != self.tokenizer.sha256:
                raise ValueError(
                    f"{file.path} was made with another tokenizer (sha256 "
                    f"{file.tokenizer_sha256[:12]}...) than {self.tokenizer_path} (sha256 "
                    f"{self.tokenizer.sha256[:12]}...): name the one it was made with, or build it "
                    "again with `python -m tools.build_corpus`."
                )
        return sorted(files, key=lambda file: wanted.index(file.language))

    def _make_feeds(self, split: str) -> list[Any]:
        source: TextSource = self.sources[split]
        training = split == "train"
        files = self._files[split]
        seed = self.seed if training else None
        rows = PackedRows(files, source.context, seed, self.shuffle_documents)
        order = self._order(files, rows.counts) if training else NaturalOrder(rows.counts)
        collate = LanguageCollate(self.languages)
        return [Feed(PART, rows, order, _as_it_is, collate, source.batch_size, self.seed, 0)]

    def _order(self, files: list[TokenFile], counts: list[int]) -> Order:
        """Which row of training comes when."""
        if self.mixture.is_proportional:
            return EpochOrder(self._shuffled(counts, PART))
        orders: list[Order] = []
        tokens: dict[str, int] = {}
        numbered = zip(files, counts, strict=True)
        for language, own in groupby(numbered, key=lambda pair: pair[0].language):
            pairs = list(own)
            tokens[language] = sum(len(file) for file, _ in pairs)
            orders.append(self._shuffled([count for _, count in pairs], f"{PART} {language}"))
        return MixedOrder(orders, list(self.mixture.shares(tokens).values()), self.seed)

    def _shuffled(self, counts: list[int], name: str) -> ShuffledOrder:
        blocks = [min(BLOCK, count - start) for count in counts for start in range(0, count, BLOCK)]
        return ShuffledOrder(blocks, self.seed, name, self.loading.window)

    def _epoch_sizes(self) -> list[EpochSize]:
        (feed,) = self._feeds["train"]
        return [EpochSize("train", feed.order.total, feed.batch_size)]

    def _check_model(self, module: Any) -> None:
        super()._check_model(module)
        longest = getattr(getattr(module, "net", None), "max_text", None)
        for split, source in self.sources.items():
            if source and isinstance(longest, int) and source.context > longest:
                raise ValueError(
                    f"{split}.context is {source.context}, but the net reads at most "
                    f"max_text={longest} tokens: make either fit the other."
                )


def _as_it_is(row: LanguageRow, choice: random.Random) -> LanguageRow:
    return row
