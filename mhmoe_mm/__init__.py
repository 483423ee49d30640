"""Multimodal mixture-of-experts transformers, trained with Lightning; `load` takes one for use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhmoe_mm.loading import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first asked for: importing the package costs nothing."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mhmoe_mm.loading import load

    return load
