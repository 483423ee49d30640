"""Contents of reports as compact JSON that cannot end the `<script>` that it stands in.

Long arrays of numbers become little-endian typed arrays in base64, `{"$": "i1", "shape": [3, 4],
"data": "..."}`; `scripts/05_data.js` makes nested arrays of them again.
"""

import base64
import json
from typing import Any

import numpy as np

LEAST = 48
"""Numbers from which packing an array is worth its words."""
TYPES = ("i1", "i2", "i4")


def script_safe(value: Any) -> str:
    """JSON for a `<script type="application/json">`: no `<`, so no tag and no comment begins."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return well_formed(text).replace("<", "\\u003c")


def well_formed(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def packed(value: Any) -> Any:
    """Plain values with their long arrays of numbers packed."""
    if isinstance(value, dict):
        return {name: packed(item) for name, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if not isinstance(value, list):
        return value
    array = _rectangular(value)
    if array is None or array.size < LEAST:
        return [packed(item) for item in value]
    raw = np.ascontiguousarray(array).tobytes()
    return {
        "$": array.dtype.str[1:],
        "shape": list(array.shape),
        "data": base64.b64encode(raw).decode(),
    }


def _rectangular(value: list[Any]) -> np.ndarray | None:
    """A nested list as an array of the smallest type, None as NaN; None if it is none."""
    if not _numbers(value):
        return None
    try:
        array = np.array(value, dtype=float)
    except (ValueError, TypeError):
        return None  # ragged
    whole = np.isfinite(array).all() and (array == array.round()).all()
    if not whole:
        return array.astype("<f4")
    reach = float(np.abs(array).max(initial=0))
    for kind in TYPES:
        if reach <= np.iinfo(kind).max:
            return array.astype(f"<{kind}")
    return None


def _numbers(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_numbers, value))
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
