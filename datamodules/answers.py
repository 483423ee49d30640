"""Lists of names in which a place is a class: `answers.json`, `classes.json`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from datamodules.module import Meaning


class NameList:
    """The classes of a task in order, read from JSON.

    Args:
        path: a list of texts, as `python -m tools.build_shards` writes it beside the card.
        what: what the names are, for errors: answers or classes.
    """

    def __init__(self, path: Path | str, what: str):
        self.path = str(path)
        self.what = what
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(
                f"The list of {what} {path} cannot be read ({error.strerror}); "
                f"`python -m tools.build_shards` writes {what}.json beside the card."
            ) from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            names = json.loads(content)
        except ValueError as error:
            raise ValueError(f"The list of {what} {path} is not JSON ({error}).") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path} is not a JSON list of {what}.")
        self.names: list[str] = names
        self.place = {name: number for number, name in enumerate(names)}
        if not names or len(self.place) < len(names):
            twice = [name for name in self.place if names.count(name) > 1][:3]
            raise ValueError(f"{path} must list each of its {what} once; twice: {twice or 'none'}.")

    def __len__(self) -> int:
        return len(self.names)

    def meaning(self) -> Meaning:
        """What a checkpoint remembers of the list."""
        return Meaning(self.path, self.sha256, f"the numbers of the {self.what} would change")

    def check_model(self, module: Any) -> None:
        """Raise ValueError where a module's `answers` or `num_classes` are others than these."""
        known = getattr(module, self.what, None)
        size = len(known) if isinstance(known, list) else getattr(module, f"num_{self.what}", None)
        if isinstance(size, int) and size != len(self):
            raise ValueError(
                f"{self.path} has {len(self)} {self.what}, the model has {size}: give both the "
                "same list, the one that the model was trained with."
            )
        if isinstance(known, list) and known != self.names:
            at = next(i for i, name in enumerate(self.names) if known[i] != name)
            raise ValueError(
                f"{self.path} has other {self.what} than the model: number {at} is "
                f"{self.names[at]!r} here and {known[at]!r} there. Give both the same list."
            )
