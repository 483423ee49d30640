"""Whether the models of a comparison may be compared: equal parameters, equal multiply-adds."""

from collections.abc import Mapping
from typing import NamedTuple

from mhmoe_mm.models.net_cost import NetCost


class Tolerance(NamedTuple):
    """How far a model may be from the reference, as shares."""

    parameters: float = 0.05
    macs: float = 0.01


def differences(reference: NetCost, cost: NetCost) -> tuple[float, float]:
    """(parameters, multiply-adds) of the feed-forward nets, as shares above the reference's."""
    parameters = cost.feed_forward_parameters / reference.feed_forward_parameters
    return parameters - 1, cost.macs / reference.macs - 1


def remarks(costs: Mapping[str, NetCost], reference: str, tolerance: Tolerance) -> list[str]:
    """A line for every model that is not matched with the reference, and for those that cannot be
    matched in parameters because one of the two has no experts. Routers are left out of the
    multiply-adds, as in the papers.
    """
    lines, there = [], costs[reference]
    for model, cost in costs.items():
        parameters, macs = differences(there, cost)
        comparable = bool(cost.sparse_layers) == bool(there.sparse_layers)
        wrong = []
        if comparable and abs(parameters) > tolerance.parameters:
            wrong.append(f"{parameters:+.1%} parameters (at most {tolerance.parameters:.0%})")
        if abs(macs) > tolerance.macs:
            wrong.append(f"{macs:+.1%} multiply-adds per token (at most {tolerance.macs:.0%})")
        if wrong:
            lines.append(f"NOT MATCHED: {model} has {' and '.join(wrong)} beside {reference}.")
        elif not comparable:
            lines.append(
                f"{model} is matched with {reference} in multiply-adds only: it has "
                f"{parameters:+.0%} parameters, as one of the two has no experts."
            )
    return lines
