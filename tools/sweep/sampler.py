"""What is tried next."""

import hashlib
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from tools.sweep.records import ordinal, root_of
from tools.sweep.space import cells_of
from tools.sweep.sweep import Sweep


def sampler_of(sweep: Sweep) -> BaseSampler:
    """The one that a sweep asks for."""
    if sweep.search.sampler == "tpe":
        # Without a seed: every worker would make the same first suggestions with the same one.
        return TPESampler(constant_liar=True)
    return Planned(sweep)


class Planned(BaseSampler):
    """A grid, or random values: those of a trial depend on how many were begun before it alone.

    So workers that know nothing of each other never try the same, and after a kill the rest of the
    plan is what it would have been.
    """

    def __init__(self, sweep: Sweep):
        search = sweep.search
        self.seed = search.seed
        self.cells = cells_of(sweep.space) if search.sampler == "grid" else None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        place = ordinal(study.get_trials(deepcopy=False), root_of(trial))
        if self.cells is not None:
            return self.cells[place][param_name]
        name = f"{self.seed} {place} {param_name}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:4], "big")
        draw = RandomSampler(seed=seed).sample_independent
        return draw(study, trial, param_name, param_distribution)
