"""What pages of one file are put together from: their scripts as one, and the frame around it."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable

SEPARATOR = "\n\n"


def joined(scripts: Iterable[Traversable]) -> str:
    """Scripts in their order as one, whose names nothing outside of it sees."""
    code = SEPARATOR.join(script.read_text(encoding="utf-8") for script in scripts)
    return f'"use strict";\n(() => {{\n{code}\n}})();\n'


def digest(text: str) -> str:
    """What a content security policy calls the one script or style that may be in a page."""
    value = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{value}'"


def filled(frame: str, parts: Mapping[str, str]) -> str:
    """A frame with its `{{places}}` filled, in one pass: what a caption says is never taken for a
    place to fill.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], frame)
