"""The routers that every layer test goes through."""

from functools import partial

from mhmoe_mm.moe import (
    BiasBalancedRouter,
    Capacity,
    CosineScorer,
    ExpertChoiceRouter,
    GShardRouter,
    SwitchRouter,
    TopKRouter,
    XMoEScorer,
)

ROUTERS = {
    "top1": partial(TopKRouter, top_k=1),
    "top2": TopKRouter,
    "top3_renormalized": partial(TopKRouter, top_k=3, renormalize=True),
    "top2_capacity": partial(TopKRouter, capacity=Capacity(0.7)),
    "top2_prioritized": partial(TopKRouter, capacity=Capacity(0.7), prioritized=True),
    "top2_xmoe": partial(TopKRouter, scorer=XMoEScorer),
    "top2_cosine": partial(TopKRouter, scorer=CosineScorer),
    "gshard": partial(GShardRouter, second="always", capacity=Capacity()),
    "gshard_after": partial(
        GShardRouter, second="always", normalize_before=False, capacity=Capacity(0.7)
    ),
    "switch": partial(SwitchRouter, capacity=Capacity()),
    "expert_choice": ExpertChoiceRouter,
    "bias_balanced": BiasBalancedRouter,
    "bias_balanced_softmax": partial(BiasBalancedRouter, gate="softmax", renormalize=False),
}
DROPLESS = [
    name for name in ROUTERS if "capacity" not in name and "prioritized" not in name
    and name not in ("gshard", "gshard_after", "switch", "expert_choice")
]  # fmt: skip
