"""What a plan is asked for."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mhmoe_mm.parallel.sharding import check_ranks
from tools.compare.comparison import read_yaml

TASKS = ("pretraining", "retrieval", "language_modeling")
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Setting:
    """A training on many ranks.

    Raises:
        ValueError: numbers that do not go together.
    """

    net: Path
    """A YAML such as those of conf/nets."""
    task: str
    world: int
    """Ranks, one GPU each."""
    expert_parallel: int = 1
    replicas: int = 1
    batch: int = 8
    """Rows of one rank in one micro-batch; pretraining has as many images, texts and pairs."""
    text: int = 32
    """Tokens of a text, padding included."""
    accumulate: int = 1
    """Micro-batches of a step."""
    precision: str = "bf16-mixed"
    recompute: bool = False
    keep_gathered: bool = False
    masked_patches: float = 0.4
    """Share of patches that pretraining predicts."""
    masked_text: float = 0.15
    """Share of the tokens of texts alone that it predicts."""
    masked_pair_text: float = 0.5
    """Share of the tokens of texts beside an image that it predicts."""

    def __post_init__(self):
        for name in ("world", "batch", "text", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a number, 1 or more, got {getattr(self, name)}.")
        check_ranks(self.expert_parallel, self.replicas, self.world)
        for name in ("masked_patches", "masked_text", "masked_pair_text"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share in (0, 1], got {getattr(self, name)}.")
        if self.task not in TASKS:
            raise ValueError(f"task is one of {', '.join(TASKS)}, got {self.task}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {' or '.join(PRECISIONS)}, got {self.precision}.")

    @property
    def mixed(self) -> bool:
        """Whether the blocks compute in bf16."""
        return self.precision == "bf16-mixed"


def read_net(path: Path) -> dict[str, Any]:
    """The net's YAML as plain values.

    Raises:
        ValueError: there is no such file, or it names no class.
    """
    try:
        spec = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a net: {error}") from error
    if not isinstance(spec, dict) or "class_path" not in spec:
        raise ValueError(f"{path} is no net: it has no class_path. conf/nets has examples.")
    return spec


def add_options(parser: argparse.ArgumentParser) -> None:
    """What plans and measurements are asked in the same words."""
    add = parser.add_argument
    add("net", type=Path, metavar="NET.yaml", help="a net such as those of conf/nets")
    add("--task", choices=TASKS, help="(default: what the net is for)")
    add("--expert-parallel", type=int, default=1, metavar="N", help="ranks that share experts")
    add("--replicas", type=int, default=1, metavar="N", help="copies of the network")
    add("--batch", type=int, default=8, metavar="N", help="rows of a rank (default 8)")
    add("--text", type=int, default=32, metavar="N", help="tokens of a text (default 32)")
    add("--accumulate", type=int, default=1, metavar="N", help="micro-batches of a step")
    add("--precision", choices=PRECISIONS, default="bf16-mixed")
    add("--recompute", action="store_true", help="activations are computed a second time")
    add("--keep-gathered", action="store_true", help="weights stay from forward to backward")
    add("--masked-patches", type=float, default=0.4, metavar="SHARE", help="(default 0.4)")
    add("--masked-text", type=float, default=0.15, metavar="SHARE", help="(default 0.15)")
    add("--masked-pair-text", type=float, default=0.5, metavar="SHARE", help="(default 0.5)")


def setting_of(options: argparse.Namespace, world: int) -> Setting:
    """The options as a setting.

    Raises:
        ValueError: as `Setting` and `read_net`.
    """
    given = {f.name: getattr(options, f.name) for f in fields(Setting) if hasattr(options, f.name)}
    if given["task"] is None:
        decoder = str(read_net(options.net)["class_path"]).endswith("Decoder")
        given["task"] = "language_modeling" if decoder else "pretraining"
    return Setting(**given | {"world": world})


def parser_of(program: str, about: str | None) -> argparse.ArgumentParser:
    """A parser that keeps the lines of its description."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    return parser


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, world: int | None = None
) -> tuple[argparse.Namespace, Setting]:
    """The options and their setting; says what is refused and ends the program with 2."""
    options = parser.parse_args(argv)
    try:
        return options, setting_of(options, options.world if world is None else world)
    except ValueError as error:
        parser.error(str(error))
