"""Where the samples of each part of a batch come from, and which shards that means."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from datamodules.members import ShardError

MAX_SHARDS = 1_000_000
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Source:
    """Where the samples of one part of a batch come from.

    Args:
        shards: a folder, a glob, a brace pattern, a file, a URL, or a list of these.
        batch_size: samples of this part a step on each rank.
        languages: codes; a caption of `.json` in one of them is drawn. None: a line of `.txt`.
        max_tokens: longest text, `<s>` and `</s>` included.
    """

    shards: str | list[str]
    batch_size: int
    languages: list[str] | None = None
    max_tokens: int = 64

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.max_tokens < 3:
            raise ValueError(
                f"max_tokens must be at least 3 (<s>, one token, </s>), got {self.max_tokens}."
            )
        if self.languages == []:
            raise ValueError("languages must name at least one language, or be null for .txt.")


@dataclass(frozen=True)
class Sources:
    """The parts of a batch, in the order in which they define the epoch; None leaves one out.

    Several parts may come from the same shards: images and captions of pairs on their own.
    """

    pair: Source | None = None
    image: Source | None = None
    text: Source | None = None

    def __post_init__(self):
        if not self.present():
            raise ValueError("At least one of pair, image and text must have a source.")

    def present(self) -> dict[str, Source]:
        """The sources that are there, by part; the first one defines the epoch."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {part: source for part, source in parts.items() if source is not None}


def expand_shards(shards: str | list[str], allow_pipe: bool = False) -> list[str]:
    """Paths and URLs of all shards, sorted within each pattern.

    Raises `ShardError` when a pattern matches nothing (and says what lies nearby), when a shard is
    listed twice, and on `pipe:`, which would run a shell, unless `allow_pipe` is set.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    found = [shard for pattern in patterns for shard in _expand(pattern, allow_pipe)]
    if not found:
        raise ShardError("The list of shards is empty.")
    if len(set(found)) < len(found):
        twice = next(shard for shard in found if found.count(shard) > 1)
        raise ShardError(f"Shard {twice} is listed twice: each sample must count once an epoch.")
    return found


def scheme(shard: str) -> str:
    """`http`, `s3`, `pipe`, ... of a URL; empty for a path."""
    head, colon, _ = shard.partition(":")
    return head.lower() if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", head) else ""


def expand_braces(pattern: str) -> list[str]:
    """`{000..002}` as a range with its leading zeros, `{a,b}` as alternatives; also nested."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    if bounds := RANGE.fullmatch(match[1]):
        first, last = int(bounds[1]), int(bounds[2])
        if not 0 <= last - first < MAX_SHARDS:
            raise ShardError(
                f"The range {match[0]} of {pattern!r} must go up, and by less than {MAX_SHARDS}."
            )
        choices = [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [shard for choice in choices for shard in expand_braces(f"{head}{choice}{tail}")]


def local_path(shard: str) -> Path | None:
    """The path of a local shard, also of a `file:` URL; None for what must be fetched."""
    kind = scheme(shard)
    if kind == "":
        return Path(shard)
    return Path(urlsplit(shard).path) if kind == "file" else None


def _expand(pattern: str, allow_pipe: bool) -> list[str]:
    if scheme(pattern) == "pipe":
        if allow_pipe:
            return [pattern]
        raise ShardError(
            f"The shard {pattern!r} would run a shell command: `pipe:` is refused "
            "unless streaming.allow_pipe is set."
        )
    if scheme(pattern) not in ("", "file"):
        return expand_braces(pattern)
    return [shard for part in expand_braces(pattern) for shard in _local(part, pattern)]


def _local(part: str, pattern: str) -> list[str]:
    path = local_path(part)
    assert path is not None
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif path.is_file():
        found = [path]
    else:
        # The part of the path before the first wildcard is where the search starts.
        fixed = [p for p in path.parts if not set("*?[") & set(p)]
        depth = next((i for i, p in enumerate(path.parts) if set("*?[") & set(p)), None)
        base = Path(*path.parts[:depth]) if depth else Path()
        wild = depth is not None and len(fixed) < len(path.parts)
        found = sorted(base.glob(str(Path(*path.parts[depth:])))) if wild else []
        found = [shard for shard in found if shard.suffix == ".tar"]
    if not found:
        raise ShardError(f"No shards match {pattern!r}: {nearby(path)}")
    return [str(shard) for shard in found]


def nearby(path: Path) -> str:
    """What exists where a pattern was looked for, as the end of a sentence."""
    if path.is_dir():
        content = _names(path)
        place = f"the folder {path} holds"
    else:
        base = next((p for p in path.parents if p.is_dir()), Path())
        content = _names(base)
        place = (
            f"the nearest folder that exists, {base.absolute() if base == Path() else base}, holds"
        )
    shown = ", ".join(content[:5]) + (f" and {len(content) - 5} more" if len(content) > 5 else "")
    return f"{place} {shown or 'nothing'}."


def _names(folder: Path) -> list[str]:
    """What lies in a folder, folders first: a mistyped split is looked for among them."""
    inside = sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name))
    return [path.name for path in inside if not path.name.endswith(".index.json")]
