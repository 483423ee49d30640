"""The members that are read, and how: an allowlist by extension.

No decoder here can run code from a shard. What is not in the list (`.pkl`, `.pyd`, `.pth`, ...) may
lie in a shard but is never opened.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from torch import Tensor

from datamodules.errors import SampleError
from mhmoe_mm.inputs.images import MAX_PIXELS, decode_image

IMAGES = ("jpg", "jpeg", "png", "webp")
SIDES = ("left", "right")
"""The images of a pair: `key.left.png` and `key.right.png`."""


@dataclass(frozen=True)
class Limits:
    """What a shard may ask of us.

    Args:
        member_bytes: largest member that is read, in bytes.
        pixels: largest image that is decoded, in pixels.
        max_errors: how many samples may be skipped in a run before it stops; each is counted.
        verify: compare the sha256 of every shard with its index at setup (reads all the data).
    """

    member_bytes: int = 32 * 2**20
    pixels: int = MAX_PIXELS
    max_errors: int = 0
    verify: bool = False


def _text(data: np.ndarray, limits: Limits) -> str:
    try:
        return data.tobytes().decode()
    except UnicodeDecodeError as error:
        raise SampleError("decode", f"it is not UTF-8 (byte {error.start})") from error


def _json(data: np.ndarray, limits: Limits) -> Any:
    try:
        return json.loads(_text(data, limits))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError("decode", f"it is not JSON ({error})") from error


def _class(data: np.ndarray, limits: Limits) -> int:
    try:
        return int(_text(data, limits))
    except ValueError as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError("decode", "it is not a whole number") from error


def _array(data: np.ndarray, limits: Limits) -> np.ndarray:
    stream = io.BytesIO(data.tobytes())
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise SampleError("refused", "it holds pickled Python objects")
        # The header may promise more than there is, and the room would be taken before it shows.
        if math.prod(shape) * dtype.itemsize > len(data):
            raise SampleError("decode", f"it promises the shape {shape}, which it has no bytes for")
        stream.seek(0)
        return npy.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError("decode", f"it is not an array ({error})") from error


def _image(data: np.ndarray, limits: Limits) -> Tensor:
    return decode_image(data, limits.pixels)


DECODERS: dict[str, Callable[[np.ndarray, Limits], Any]] = {
    **dict.fromkeys(IMAGES, _image),
    **{f"{side}.{kind}": _image for side in SIDES for kind in IMAGES},
    "txt": _text,
    "json": _json,
    "cls": _class,
    "npy": _array,
}
