"""The command `python -m tools.expert_report`: what a run's experts do, as a page.

    python -m tools.expert_report runs/shapes/version_0 --out report.html
    python -m tools.expert_report runs/mh_moe/version_0 runs/smoe/version_0 --out compared.html

Records the routing of a checkpoint on the validation data of its run, or reads it from a file that
was recorded, analyses it and writes one file that opens in any browser. See docs/expert_report.md.
"""

import argparse
from pathlib import Path

from rich.console import Console

from tools.build_shards.errors import InputError, run_reporting
from tools.expert_report.contents import RunContents
from tools.expert_report.contents_json import read_contents, write_contents
from tools.expert_report.page import write_page
from tools.expert_report.run import Wanted, contents_of
from tools.expert_report.table import print_summary
from tools.expert_report.word_spread import read_word_list


def main(argv: list[str] | None = None) -> int:
    """Analyse one run or two and write the report; 2 and a sentence where something is wrong."""
    options = _parser().parse_args(argv)
    stopped = "Interrupted; no report was written."
    return run_reporting(lambda: _run(options), stopped, name="expert_report")


def _run(options: argparse.Namespace) -> int:
    contents = _contents(options, Console(stderr=True, highlight=False))
    if options.json:
        write_contents(contents, options.json)
    if options.out:
        write_page(contents, options.out)
    print_summary(contents, Console(highlight=False))
    for path in filter(None, (options.out, options.json, options.dump)):
        print(f"written: {path}")
    return 0


def _contents(options: argparse.Namespace, console: Console) -> list[RunContents]:
    _check(options)
    sources = [source for source in (options.source, options.second) if source]
    wanted = _wanted(options)
    contents: list[RunContents] = []
    for source in sources:
        if source.suffix == ".json":
            contents += _read(source)
            continue
        with console.status(f"{source}") as status:
            contents.append(
                contents_of(source, wanted, lambda text, s=source: status.update(f"{s}: {text}"))
            )
    if len(contents) > 2:
        raise InputError(f"A report shows one run or two, and these are {len(contents)}.")
    return _told_apart(contents)


def _read(path: Path) -> list[RunContents]:
    try:
        return read_contents(path)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check(options: argparse.Namespace) -> None:
    if not (options.out or options.json or options.dump):
        raise InputError("Nothing is to be written: give --out FILE.html, --json or --dump.")
    if options.dump and options.second:
        raise InputError("--dump writes the routing of one run: name one run, or leave it out.")
    if options.dump and options.dump.suffix not in (".npz", ".parquet"):
        raise InputError(f"--dump writes .npz or .parquet, not {options.dump}.")
    if options.tau is not None and not 0 <= options.tau < 1:
        raise InputError(f"--tau is a frequency in [0, 1), got {options.tau}.")
    for name in ("batches", "tokens"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise InputError(f"--{name} is a number, 1 or more, got {number}.")
    for name in ("checkpoints", "sentences", "images"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name} is a number, 0 or more, got {getattr(options, name)}.")
    for path in filter(None, (options.source, options.second)):
        if not path.exists():
            raise InputError(f"There is no {path}: name a run's folder, a checkpoint or an .npz.")


def _wanted(options: argparse.Namespace) -> Wanted:
    words: list[str] = []
    if options.words:
        try:
            words = read_word_list(options.words.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{options.words} cannot be read as a list of words: {error}"
            ) from error
        if not words:
            raise InputError(f"{options.words} has no words: it takes one a line.")
    return Wanted(
        config=options.config,
        split=options.split,
        tokens=options.tokens,
        batches=options.batches,
        tau=options.tau,
        overload=options.overload,
        words=tuple(words),
        least=options.least,
        sentences=options.sentences,
        images=options.images,
        checkpoints=options.checkpoints,
        device=options.device,
        plugins=tuple(options.plugin),
        dump=options.dump,
    )


def _told_apart(contents: list[RunContents]) -> list[RunContents]:
    """The same with different names."""
    names = [run.summary.name for run in contents]
    if len(set(names)) == len(names):
        return contents
    kinds = [f"{run.summary.name} ({run.summary.layer_kind})" for run in contents]
    if len(set(kinds)) < len(kinds):
        kinds = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return [
        run._replace(summary=run.summary._replace(name=name))
        for run, name in zip(contents, kinds, strict=True)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.expert_report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    what = "a run's folder, a checkpoint, an .npz of recorded routing or a folder of them"
    add("source", type=Path, help=f"{what}, or a .json of an earlier report")
    add("second", type=Path, nargs="?", help="another one, to be shown beside it")
    add("--out", type=Path, metavar="FILE.html", help="the page")
    add("--json", type=Path, metavar="FILE", help="what the page shows, as JSON")
    add("--dump", type=Path, metavar="FILE", help="the raw routing, .npz or .parquet")
    add("--config", type=Path, metavar="FILE", help="whose data are read (default: the run's)")
    add("--split", choices=("val", "test"), default="val", help="(default val)")
    add("--batches", type=int, metavar="N", help="at most (default: all of the split)")
    add("--tokens", type=int, metavar="N", help="at most, rounded up to a batch")
    add("--words", type=Path, metavar="FILE", help="words to compare with the rest, one a line")
    add(
        "--least", type=int, default=5, metavar="N", help="occurrences of a listed word (default 5)"
    )
    add(
        "--tau", type=float, help="an expert is active above this frequency (default: half of even)"
    )
    add("--overload", type=float, default=4.0, help="even shares that are too many (default 4)")
    add("--checkpoints", type=int, default=5, metavar="N", help="earlier ones (default 5)")
    add("--sentences", type=int, default=24, metavar="N", help="shown (default 24)")
    add("--images", type=int, default=8, metavar="N", help="shown (default 8)")
    add("--device", default="cpu", help="where the network runs (default cpu)")
    add("--plugin", action="append", default=[], metavar="PKG", help="as for mhmoe-mm")
    return parser
