"""The search space: what is varied, and what a suggested value is on the command line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tools.compare.comparison import words_of

FORMS = ("choices", "options", "int", "float")
LAYER = "layer."
"""Begins the keys that are numbers of the feed-forward layers, not options."""


@dataclass(frozen=True)
class Dimension:
    """One thing that is varied.

    Args:
        key: an option of `mhmoe-mm fit` without its dashes, `layer.` and a number of the layers, or
            any name where each choice is a text of options.
        distribution: as Optuna has it; choices are told apart by their names.
        meanings: of choices, by name: a value of the option, or options.
        texts: whether those are options.
    """

    key: str
    distribution: BaseDistribution
    meanings: Mapping[str, Any]
    texts: bool = False

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value for a trial; the same again where it has one."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return trial.suggest_categorical(self.key, found.choices)
        if isinstance(found, IntDistribution):
            return trial.suggest_int(
                self.key, found.low, found.high, step=found.step, log=found.log
            )
        assert isinstance(found, FloatDistribution)
        return trial.suggest_float(self.key, found.low, found.high, step=found.step, log=found.log)

    def meaning(self, value: Any) -> Any:
        """What a suggested value stands for."""
        return self.meanings[str(value)] if self.meanings else value

    def words(self, value: Any) -> list[str]:
        """The options for a suggested value; none for a number of the layers."""
        meant = self.meaning(value)
        if self.texts:
            return list(words_of(meant))
        if self.key.startswith(LAYER):
            return []
        return [f"--{self.key}", meant if isinstance(meant, str) else json.dumps(meant)]

    @property
    def values(self) -> list[Any] | None:
        """All of them, or None of a real number."""
        if isinstance(self.distribution, CategoricalDistribution):
            return list(self.distribution.choices)
        if isinstance(self.distribution, IntDistribution) and not self.distribution.log:
            found = self.distribution
            return list(range(found.low, found.high + 1, found.step))
        return None


def read_space(entries: Any) -> tuple[Dimension, ...]:
    """The dimensions that a sweep file's `space` describes.

    Raises:
        ValueError: one sentence, without the place.
    """
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"`space` maps keys to what they may be, got {entries!r}.")
    return tuple(_dimension(str(key), entry) for key, entry in entries.items())


def cells_of(space: tuple[Dimension, ...]) -> list[dict[str, Any]]:
    """Every combination, the last key varying fastest.

    Raises:
        ValueError: a dimension is a range of real numbers.
    """
    for dimension in space:
        if dimension.values is None:
            raise ValueError(f"a grid needs choices, and {dimension.key} is a range of numbers.")
    keys = [dimension.key for dimension in space]
    values = [dimension.values or [] for dimension in space]
    return [dict(zip(keys, cell, strict=True)) for cell in product(*values)]


def _dimension(key: str, entry: Any) -> Dimension:
    forms = [form for form in FORMS if isinstance(entry, dict) and form in entry]
    if len(forms) != 1:
        raise ValueError(f"{key} has one of {', '.join(FORMS)}, got {entry!r}.")
    [form] = forms
    known = {form, *({"log", "step"} if form in ("int", "float") else ())}
    if unknown := sorted(entry.keys() - known):
        raise ValueError(f"{key} has {unknown[0]}, which {form} does not know.")
    if form == "options":
        return _options(key, entry[form])
    return _choices(key, entry[form]) if form == "choices" else _range(key, form, entry)


def _choices(key: str, given: Any) -> Dimension:
    if isinstance(given, list) and given:
        plain = all(isinstance(value, str | int | float) for value in given)
        if not plain or len({str(value) for value in given}) < len(given):
            raise ValueError(
                f"{key}: choices in a list are different texts, numbers or flags; give others names"
                f" as in {{small: [1, 2], large: [3, 4]}}, got {given!r}."
            )
        return Dimension(key, CategoricalDistribution(given), {})
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{key}: `choices` is a list, or maps names to values, got {given!r}.")
    named = {str(name): value for name, value in given.items()}
    return Dimension(key, CategoricalDistribution(list(named)), named)


def _options(key: str, given: Any) -> Dimension:
    right = isinstance(given, dict) and given
    if not right or not all(isinstance(text, str | None) for text in given.values()):
        raise ValueError(f"{key}: `options` maps names to texts of options, got {given!r}.")
    named = {str(name): text for name, text in given.items()}
    return Dimension(key, CategoricalDistribution(list(named)), named, texts=True)


def _range(key: str, form: str, entry: Mapping[str, Any]) -> Dimension:
    ends, log, step = entry[form], entry.get("log", False), entry.get("step")
    number = int if form == "int" else float
    try:
        low, high = (number(end) for end in ends)
        if form == "int":
            found = IntDistribution(low, high, log=bool(log), step=1 if step is None else step)
        else:
            found = FloatDistribution(low, high, log=bool(log), step=step)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{key}: `{form}` is the least and the greatest number, as in [1, 8], with `log: true` "
            f"or a `step` besides, got {dict(entry)!r}: {error}"
        ) from error
    return Dimension(key, found, {})
