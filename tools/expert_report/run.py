"""From a checkpoint, a run or a file of recorded routing to the contents of its report."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mhmoe_mm.callbacks.routing_file import (
    RoutingMeta,
    RoutingReader,
    RoutingWriter,
    pieces_of,
)
from mhmoe_mm.callbacks.routing_rows import TEXT, RoutedRow
from mhmoe_mm.callbacks.routing_table import RoutingTable
from mhmoe_mm.callbacks.routing_tokens import RoutingChunk
from mhmoe_mm.inputs.spelling import Spelling
from mhmoe_mm.loading import LoadedTask
from mhmoe_mm.moe.sparse_layers import described
from tools.expert_report.analysis import Analysis
from tools.expert_report.contents import Fact, Image, ImageStep, PatchStep, RunContents, Sentence
from tools.expert_report.diversity import mean_diversity
from tools.expert_report.examples import (
    Example,
    Picker,
    RowPicker,
    image,
    image_step,
    read,
    sentence,
    text_of,
)
from tools.expert_report.patch_spread import PatchSpread
from tools.expert_report.recording import (
    Data,
    data_of,
    earlier,
    fill,
    loaded,
    recorded,
    refused,
    run_folder_of,
)
from tools.expert_report.training import curves, history


class Wanted(NamedTuple):
    """What a report is to be made of."""

    config: Path | None = None
    """Whose data are read; None: those of the run."""
    split: str = "val"
    tokens: int | None = None
    """At most, rounded up to a batch; None: all of the split."""
    batches: int | None = None
    tau: float | None = None
    overload: float = 4.0
    words: tuple[str, ...] = ()
    """To be compared with the rest."""
    least: int = 5
    """Occurrences of a word from which it is listed."""
    sentences: int = 24
    images: int = 8
    checkpoints: int = 5
    """Earlier checkpoints at most."""
    history_batches: int = 4
    """Batches that the patches of every checkpoint are compared on."""
    device: str = "cpu"
    plugins: tuple[str, ...] = ()
    dump: Path | None = None


Say = Callable[[str], None]


def contents_of(source: Path, wanted: Wanted, say: Say) -> RunContents:
    """The contents of one run.

    Raises:
        InputError: what is wrong with the source, or with what is wanted of it.
    """
    recording = source.suffix == ".npz" or (source.is_dir() and any(source.glob("*.npz")))
    return _of_file(source, wanted, say) if recording else _of_checkpoint(source, wanted, say)


def _of_file(source: Path, wanted: Wanted, say: Say) -> RunContents:
    with refused():
        reader = RoutingReader(source, weights=wanted.dump is not None)
    meta = reader.meta
    analysis = Analysis(meta.layers, meta.pieces, wanted.tau, wanted.words)
    picker = RowPicker(wanted.sentences, wanted.images, meta.pieces)
    with refused():
        for number, chunk in enumerate(_dumped(iter(reader), wanted.dump, meta, reader), 1):
            analysis.add(chunk)
            picker.see(chunk)
            if number % 50 == 0:
                say(f"{analysis.num_tokens:,} tokens")
    analysis.loads = dict(reader.loads)
    folder = next((p for p in source.parents if (p / "config.yaml").is_file()), source.parent)
    trained = meta.step or 0
    step = analysis.patches.result(trained)
    summary = analysis.summary(meta.name, str(source), meta.task, meta.step, None, meta.data, ())
    num_experts = _num_experts(analysis)
    sentences, images = picker.chosen()
    with refused():
        return analysis.contents(
            summary,
            wanted.overload,
            curves(folder),
            history(folder),
            [sentence(row, meta.pieces, num_experts) for row in sentences],
            [
                image(
                    row,
                    text_of(row, meta.pieces) if meta.pieces else "",
                    num_experts,
                    [image_step(row, num_experts, trained)],
                )
                for row in images
            ],
            [step] if step else (),
            wanted.least,
        )


def _of_checkpoint(source: Path, wanted: Wanted, say: Say) -> RunContents:
    found = loaded(source, wanted.device, wanted.plugins)
    data = data_of(found.file, wanted.config, wanted.split, wanted.plugins)
    spelling = data.spelling or (Spelling(found.texts.tokenizer) if found.texts else None)
    folder = run_folder_of(found.file)
    name = str(data.config.get("name") or "run") if folder else found.file.stem
    described_data = f"split {wanted.split} of " + _class_of(data)
    layers = described(found.task.net)
    pieces = pieces_of(spelling)
    meta = RoutingMeta(
        name, type(found.task).__name__, found.step, described_data, tuple(layers), pieces
    )
    analysis = Analysis(layers, pieces, wanted.tau, wanted.words)
    picker = Picker(wanted.sentences, wanted.images, spelling.eos if spelling else None)
    limited = _Limited(data.batches(), wanted, analysis)
    recording = recorded(found.task, limited, spelling, picker.see)
    for chunk in _dumped(recording, wanted.dump, meta, None):
        analysis.add(chunk)
        say(f"{analysis.num_tokens:,} tokens recorded")
    cut = " (cut short)" if limited.cut else ""
    summary = analysis.summary(
        name,
        str(found.file),
        meta.task,
        found.step,
        sum(p.numel() for p in found.task.parameters()),
        f"{described_data}, {limited.count} batches{cut}",
        _facts(data, wanted),
    )
    num_experts = _num_experts(analysis)
    sentences, chosen = picker.chosen()
    shown_steps, patch_steps = _over_checkpoints(found, data, chosen, num_experts, wanted, say)
    with refused():
        return analysis.contents(
            summary,
            wanted.overload,
            curves(folder) if folder else (),
            history(folder) if folder else (),
            _sentences(found, sentences, spelling, pieces, num_experts),
            _images(found, chosen, spelling, num_experts, shown_steps),
            patch_steps,
            wanted.least,
        )


def _num_experts(analysis: Analysis) -> dict[str, int]:
    """Of every layer that tokens passed."""
    return {
        layer.name: layer.num_experts
        for layer in analysis.descriptions
        if analysis.tallies[layer.name].choices
    }


class _Limited:
    """Batches up to the wanted number of them, or of tokens."""

    def __init__(self, batches: Iterator[object], wanted: Wanted, analysis: Analysis):
        self.batches, self.wanted, self.analysis = batches, wanted, analysis
        self.count, self.cut = 0, False

    def __iter__(self) -> Iterator[object]:
        for batch in self.batches:
            most, tokens = self.wanted.batches, self.wanted.tokens
            if (most is not None and self.count >= most) or (
                tokens is not None and self.analysis.num_tokens >= tokens
            ):
                self.cut = True
                return
            self.count += 1
            yield batch


def _dumped(
    chunks: Iterator[RoutingChunk],
    path: Path | None,
    meta: RoutingMeta,
    reader: RoutingReader | None,
) -> Iterator[RoutingChunk]:
    """The same chunks, written on the way."""
    if path is None:
        yield from chunks
        return
    with refused():
        writer = (
            RoutingTable(path, meta) if path.suffix == ".parquet" else RoutingWriter(path, meta)
        )
    try:
        for chunk in chunks:
            writer.add(chunk)
            yield chunk
        if reader is not None and isinstance(writer, RoutingWriter):
            writer.loads = dict(reader.loads)
        writer.close()
    except BaseException:
        writer.discard()
        raise


def _over_checkpoints(
    found: LoadedTask,
    data: Data,
    chosen: Sequence[Example],
    num_experts: dict[str, int],
    wanted: Wanted,
    say: Say,
) -> tuple[list[list[ImageStep]], list[PatchStep]]:
    """For each image how it was read over the checkpoints of the run, and all patches likewise."""
    if not chosen:
        return [], []
    shown: list[list[ImageStep]] = [[] for _ in chosen]
    steps: list[PatchStep] = []
    # Into the task that is there: to build it anew for every file takes longer than all the rest.
    own = {name: value.clone() for name, value in found.task.state_dict().items()}
    for file in [*earlier(found.file, wanted.checkpoints), None]:
        number = found.step or 0
        if file is None:
            found.task.load_state_dict(own)
        else:
            say(f"patches at {file.name}")
            number = fill(found.task, file)
        for images, row in zip(shown, _of_images(found, chosen, None), strict=True):
            images.append(image_step(row, num_experts, number))
        spread = PatchSpread(described(found.task.net))
        some = islice(data.batches(), wanted.history_batches)
        for chunk in recorded(found.task, some, None):
            spread.add(chunk, mean_diversity(chunk, spread.layers))
        if step := spread.result(number):
            steps.append(step)
    return shown, steps


def _of_images(
    found: LoadedTask, examples: Sequence[Example], spelling: Spelling | None
) -> list[RoutedRow]:
    """The row that reads each example's image."""
    return [row for row in read(found.task, examples, spelling) if row.pixel is not None]


def _images(
    found: LoadedTask,
    examples: Sequence[Example],
    spelling: Spelling | None,
    num_experts: dict[str, int],
    steps: Sequence[Sequence[ImageStep]],
) -> list[Image]:
    texts = [spelling.text(list(one.ids)) if spelling and one.ids else "" for one in examples]
    read_by = zip(_of_images(found, examples, spelling), texts, steps, strict=True)
    return [image(row, text, num_experts, step) for row, text, step in read_by]


def _sentences(
    found: LoadedTask,
    examples: Sequence[Example],
    spelling: Spelling | None,
    pieces: Sequence[str],
    num_experts: dict[str, int],
) -> list[Sentence]:
    if spelling is None:
        return []
    rows = read(found.task, examples, spelling)
    return [sentence(row, pieces, num_experts) for row in rows if len(row.part(TEXT))]


def _class_of(data: Data) -> str:
    return type(data.module).__name__


def _facts(data: Data, wanted: Wanted) -> list[Fact]:
    """Further lines for people."""
    seed, trainer = data.config.get("seed_everything"), data.config.get("trainer") or {}
    facts = [
        Fact("seed", "" if seed is None else str(seed)),
        Fact("training steps", str(trainer.get("max_steps", ""))),
        Fact("precision of the training", str(trainer.get("precision", ""))),
        Fact("routing recorded in", f"32 bits on {wanted.device}"),
    ]
    return [fact for fact in facts if fact.value not in ("", "None", "-1")]
