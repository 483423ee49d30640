"""What a caller has: paths, PIL images, arrays; one or several. Each becomes the pixels that a
shard's image would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from mhmoe_mm.inputs.images import MAX_PIXELS, ImageError, decode_image, pixels_of, read_header

Image = str | Path | PILImage.Image | np.ndarray | Tensor
"""A path of a JPEG, PNG or WebP file, a PIL image, or uint8 (3 height width) or (height width 3).
"""

_DEEP = ("I", "F")
"""How the modes of PIL images begin that have more than 8 bits a channel."""


def several(given: Any, what: str) -> tuple[list[Any], bool]:
    """(what was given as a list, whether it was one); ValueError for an empty one."""
    if not isinstance(given, list | tuple):
        return [given], False
    if not given:
        raise ValueError(f"There is no {what}: give one or a list of at least one.")
    return list(given), True


def checked_texts(texts: Sequence[Any], what: str) -> list[str]:
    """The same texts; ValueError where one is none."""
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"A {what} is a str or a list of them, not {type(text).__name__}.")
    return list(texts)


def paired(**given: Any) -> tuple[list[list[Any]], bool]:
    """(columns of one length, whether there is a list among them): what is one stands in every row.

    Raises:
        ValueError: two lists of different lengths.
    """
    columns = {name: several(value, name) for name, value in given.items()}
    listed = {name: len(column) for name, (column, many) in columns.items() if many}
    if len(set(listed.values())) > 1:
        sizes = " and ".join(f"{size} of {name}" for name, size in listed.items())
        raise ValueError(f"Lists that belong together are of one length, not {sizes}.")
    rows = max(listed.values(), default=1)
    return [column if many else column * rows for column, many in columns.values()], bool(listed)


def check_number(value: Any, name: str, whole: bool = False) -> None:
    """ValueError where a value is not a number, or not a whole one."""
    if type(value) not in ((int,) if whole else (int, float)):
        raise ValueError(f"{name} is a {'whole ' * whole}number, got {value!r}.")


def pixels(image: Image) -> Tensor:
    """uint8 (3 height width) of an image of any size.

    Raises:
        ValueError: there is no such file, or it is damaged or of another format, or the image has
            more than 8 bits a channel, more than 50 million pixels, or another shape.
    """
    if isinstance(image, str | Path):
        return _read(image)
    if isinstance(image, PILImage.Image):
        return _converted(image)
    if isinstance(image, np.ndarray | Tensor):
        return _arranged(image)
    raise ValueError(
        "An image is a path, a PIL image, or a uint8 array or tensor (several are a list of them), "
        f"not {type(image).__name__}."
    )


def _read(path: str | Path) -> Tensor:
    if "://" in str(path):
        raise ValueError(f"Images are not read from addresses: download {path} and name the file.")
    try:
        data = np.frombuffer(bytearray(Path(path).read_bytes()), dtype=np.uint8)
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"The image {path} cannot be read: {reason}.") from error
    try:
        header = read_header(data)
        _check_size(header.height, header.width, f"The image {path}")
        return decode_image(data)
    except ImageError as error:
        raise ValueError(f"The image {path} cannot be used: {error}.") from error


def _converted(image: PILImage.Image) -> Tensor:
    if image.mode.startswith(_DEEP):
        raise ValueError(
            f"The PIL image has the mode {image.mode}, more than 8 bits a channel: convert it to "
            "RGB."
        )
    _check_size(image.height, image.width, "The PIL image")
    try:
        return pixels_of(image)
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads a file when it is needed
        raise ValueError(f"The PIL image cannot be read: {error}.") from error


def _arranged(image: np.ndarray | Tensor) -> Tensor:
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(
            f"Pixels are uint8, from 0 to 255, not {image.dtype}: convert them, those from 0 to 1 "
            "times 255."
        )
    shape = tuple(image.shape)
    if len(shape) != 3 or 3 not in (shape[0], shape[2]):
        otherwise = "a list" if len(shape) == 4 else "a PIL image"
        raise ValueError(
            f"An image has the shape (3, height, width) or (height, width, 3), not {shape}: "
            f"make {otherwise} of it."
        )
    pixel = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    rows = pixel.permute(1, 2, 0) if shape[0] == 3 else pixel
    _check_size(rows.shape[0], rows.shape[1], "The array")
    # In memory as the decoders leave it, so that the same pixels are resized the same.
    return cast(Tensor, rows.cpu().contiguous().permute(2, 0, 1))


def _check_size(height: int, width: int, what: str) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(
            f"{what} has {width} x {height} = {height * width} pixels; 1 to {MAX_PIXELS} are "
            "allowed."
        )
