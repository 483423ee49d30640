"""Multimodal mixture-of-experts transformers, trained with Lightning; `load` takes one for use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhmoe_mm.hub import from_pretrained, push_to_hub
    from mhmoe_mm.loading import load

__all__ = ["from_pretrained", "load", "push_to_hub"]
_HOMES = {
    "from_pretrained": "mhmoe_mm.hub",
    "load": "mhmoe_mm.loading",
    "push_to_hub": "mhmoe_mm.hub",
}


def __getattr__(name: str) -> Any:
    """Imported when it is first asked for: importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
