"""A plan in words."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tools.plan.ledger import Channel
from tools.plan.simulate import Plan

ASSUMED = (
    "every rank has one GPU and the same number of rows",
    "experts get equally many tokens, and masks select the shares that were given",
    "memory is that of tensors: an allocator keeps more between them, a CUDA context takes its own",
    "collectives go round in a ring; each block's weights come together once a forward and once a "
    "backward",
    "attention is one fused kernel; the optimizer is AdamW in float32; blocks are not compiled",
)
"""What a plan takes for granted."""


def document(plan: Plan, per_node: int) -> dict[str, Any]:
    """All figures, for JSON; bytes and operations are of one rank and one step."""
    setting = asdict(plan.setting) | {"net": str(plan.setting.net)}
    return {
        "setting": setting | {"per_node": per_node},
        "parameters": plan.parameters,
        "bytes": {
            "weights": plan.weights,
            "gradients": plan.gradients,
            "optimizer": plan.optimizer,
            "passing": plan.passing,
            "peak": plan.peak,
        },
        "flops": {"done": plan.flops, "model": plan.model_flops},
        "traffic": [
            {
                "kind": channel.kind,
                "ranks": len(channel.ranks),
                "within_node": within_node(channel, per_node),
                "messages": traffic.messages,
                "bytes_sent": traffic.sent,
            }
            for channel, traffic in plan.traffic.items()
        ],
        "assumed": list(ASSUMED),
    }


def within_node(channel: Channel, per_node: int) -> bool:
    """Whether all ranks of a group sit in one machine."""
    return len({rank // per_node for rank in channel.ranks}) == 1


def written(plan: Plan, per_node: int) -> Group:
    """The plan as tables, and what it takes for granted."""
    setting = plan.setting
    what = (
        f"{setting.task} of {setting.net}: {plan.parameters:,} parameters on {setting.world:,} "
        f"ranks, {per_node} a machine"
    )
    rows = setting.batch * setting.world * setting.accumulate
    step = f"a step reads {rows:,} rows"
    step += " of each kind" if setting.task == "pretraining" else ""
    return Group(
        Text(what),
        Text(f"{step}, texts of {setting.text} tokens, in {setting.precision}"),
        _memory(plan),
        _operations(plan),
        _traffic(plan, per_node),
        Text("Assumed: " + "; ".join(ASSUMED) + "."),
    )


def _memory(plan: Plan) -> Table:
    table = _table("memory of one rank", "GB")
    parts = {
        "weights, its share": plan.weights,
        "gradients, its share": plan.gradients,
        "optimizer, its share": plan.optimizer,
        "gathered weights and activations": plan.passing,
        "at most": plan.peak,
    }
    for name, size in parts.items():
        table.add_row(name, f"{size / 1e9:.3f}")
    return table


def _operations(plan: Plan) -> Table:
    table = _table("operations of a step, TFLOP", "one rank", "all")
    parts = {"done, with what is recomputed": plan.flops, "the model's, for MFU": plan.model_flops}
    for name, flops in parts.items():
        whole = flops * plan.setting.world
        table.add_row(name, f"{flops / 1e12:,.3f}", f"{whole / 1e12:,.1f}")
    return table


def _traffic(plan: Plan, per_node: int) -> Table:
    columns = ("ranks", "path", "messages", "GB sent by a rank")
    table = _table("traffic of a step", *columns)
    order = sorted(plan.traffic.items(), key=lambda item: -item[1].sent)
    for channel, traffic in order:
        path = "in a machine" if within_node(channel, per_node) else "between machines"
        table.add_row(
            channel.kind,
            f"{len(channel.ranks):,}",
            path,
            f"{traffic.messages:,}",
            f"{traffic.sent / 1e9:.4f}",
        )
    if not order:
        table.add_row("none", *[""] * len(columns))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def as_json(plan: Plan, per_node: int) -> str:
    """The document as a text."""
    return json.dumps(document(plan, per_node), indent=1) + "\n"
