"""Mixture-of-experts layers: the heart of the project. Knows tensors only."""

from mhmoe_mm.moe.backend_auto import AutoBackend
from mhmoe_mm.moe.backend_native import NativeBackend
from mhmoe_mm.moe.backends import Backend, EveryBackend, GroupedBackend, LoopBackend
from mhmoe_mm.moe.balanced_routers import BiasBalancedRouter, ExpertChoiceRouter
from mhmoe_mm.moe.capacity import Capacity
from mhmoe_mm.moe.experts import Experts, GeluExperts, SwiGLUExperts
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE
from mhmoe_mm.moe.quantization import BitNet, Quantization
from mhmoe_mm.moe.routers import GShardRouter, SwitchRouter, TopKRouter
from mhmoe_mm.moe.routing import Kinds, Load, Plan, Router, total_load
from mhmoe_mm.moe.scorers import CosineScorer, LinearScorer, Scorer, XMoEScorer

__all__ = [
    "AutoBackend",
    "Backend",
    "BiasBalancedRouter",
    "BitNet",
    "Capacity",
    "CosineScorer",
    "EveryBackend",
    "ExpertChoiceRouter",
    "Experts",
    "GShardRouter",
    "GeluExperts",
    "GroupedBackend",
    "Kinds",
    "LinearScorer",
    "Load",
    "LoopBackend",
    "MHMoE",
    "NativeBackend",
    "Plan",
    "Quantization",
    "Router",
    "Scorer",
    "SparseMoE",
    "SwiGLUExperts",
    "SwitchRouter",
    "TopKRouter",
    "XMoEScorer",
    "total_load",
]
