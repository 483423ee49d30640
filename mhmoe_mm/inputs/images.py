"""Images from bytes: uint8 (3 height width) with the pixels that PIL gives.

    JPEG, grey or RGB          simplejpeg where it is installed, else torchvision: the same pixels
                               in half the time
    the same, decoded smaller  simplejpeg where it is installed, else PIL: again the same pixels
    JPEG in CMYK, PNG, WebP    PIL; what is transparent is put on white
    PNG with 16 bits           refused, and so is every other format

torchvision decodes PNG too, but a damaged one ends the whole process there (libpng's error crashes
it) instead of raising. The size is read from the header before a decoder sees the data: a small
file may unfold into gigabytes. Orientation tags are not applied, as in PIL.
"""

import io
import struct
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode  # which brings torch.ops.image too

RGB = ImageReadMode.RGB.value
LEAST_SIDE = 64
"""Of an image that simplejpeg decodes: in small ones two of its scales may give the same size."""
MAX_PIXELS = 50_000_000
"""Of an image that is decoded, unless asked for otherwise."""
# Start-of-frame markers; C4, C8 and CC in their midst are something else.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class ImageError(ValueError):
    """An image that cannot be used: `kind` is a word for counts, the text says what is wrong with
    "it".
    """

    def __init__(self, kind: str, why: str):
        super().__init__(why)
        self.kind = kind


class Header(NamedTuple):
    """What an image says of itself before it is decoded."""

    kind: str
    height: int
    width: int
    plain: bool
    """Whether it is a JPEG that other libraries than PIL decode, safely and to PIL's pixels; it can
    be decoded smaller.
    """


def decode_image(data: np.ndarray, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Pixels of a JPEG, PNG or WebP file (uint8 array of its bytes); `ImageError` when it is not
    whole, not one of these, or larger than `max_pixels`.
    """
    return decode_rest(data, checked_header(data, max_pixels))


def checked_header(data: np.ndarray, max_pixels: int = MAX_PIXELS) -> Header:
    """Kind and size of a file, `ImageError` when it is of another kind or larger than allowed."""
    header = read_header(data)
    if not header.height * header.width:
        raise ImageError("decode", "its header says that it has no pixels")
    if header.height * header.width > max_pixels:
        raise ImageError(
            "pixels",
            f"it has {header.width} x {header.height} = {header.width * header.height} pixels, "
            f"of which {max_pixels} are allowed (limits.pixels of data)",
        )
    return header


def decode_rest(data: np.ndarray, header: Header, reduction: int = 1) -> Tensor:
    """Pixels of a file whose header is known; `ImageError` when it is damaged.

    Args:
        data: the bytes of the file, uint8.
        header: what `checked_header` says of it.
        reduction: 1, or 2, 4 or 8 to decode a plain JPEG to a half, a quarter or an eighth of its
            height and width, rounded up: its frequencies above are left out.
    """
    assert reduction == 1 or header.plain, "only plain JPEGs are decoded smaller"
    try:
        pixels = _decoded(data, header, reduction)
        if pixels.shape[1:] != (-(-header.height // reduction), -(-header.width // reduction)):
            raise ValueError("its size is not that of its header")
        return pixels
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0].rsplit(", ", 1)[-1]
        raise ImageError("decode", f"its {header.kind} data are damaged ({reason})") from error


def read_header(data: np.ndarray) -> Header:
    """Kind and size from the first bytes, whatever the file is called."""
    head = data[:32].tobytes()
    try:
        if head.startswith(b"\xff\xd8"):
            return _jpeg_header(data.data)  # whose elements are plain integers
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_header(head)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp_header(head)
    except (IndexError, struct.error):
        raise ImageError("decode", "it ends within its header") from None
    raise ImageError("decode", "it is neither JPEG, PNG nor WebP")


def _jpeg_header(data: memoryview) -> Header:
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # padding before a marker
            at += 1
        if data[at] != 0xFF:
            raise ImageError("decode", "its JPEG header is damaged")
        marker = data[at + 1]
        if marker in JPEG_FRAMES:
            height, width, channels = struct.unpack_from(">HHB", data, at + 5)
            return Header("jpeg", height, width, plain=channels in (1, 3))
        at += 2 + data[at + 2] * 256 + data[at + 3]


def _png_header(head: bytes) -> Header:
    width, height, depth = struct.unpack(">IIB", head[16:25])
    if depth == 16:
        raise ImageError("decode", "it is a PNG with 16 bits a channel: convert it to 8 bits")
    return Header("png", height, width, plain=False)


def _webp_header(head: bytes) -> Header:
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:30]))
    return Header("webp", height, width, plain=False)


def _decoded(data: np.ndarray, header: Header, reduction: int) -> Tensor:
    if not header.plain:
        return _decode_with_pil(data)
    if _simplejpeg() and min(header.height, header.width) >= LEAST_SIDE:
        tall, wide = (-(-side // reduction) for side in (header.height, header.width))
        try:
            pixels = _simplejpeg().decode_jpeg(
                data, min_height=tall, min_width=wide, min_factor=reduction, strict=True
            )
            return torch.from_numpy(pixels).permute(2, 0, 1)
        except ValueError:
            pass  # damaged or suspicious: what becomes of it is the same as without simplejpeg
    if reduction > 1:
        return _decode_with_pil(data, (header.width // reduction, header.height // reduction))
    # What `torchvision.io.decode_jpeg` calls after a warning and checks, on every image.
    return torch.ops.image.decode_jpeg(torch.from_numpy(data), RGB, False)


@cache
def _simplejpeg() -> Any:
    """The module, None where it is not installed."""
    return import_module("simplejpeg") if find_spec("simplejpeg") else None


def _decode_with_pil(data: np.ndarray, at_least: tuple[int, int] | None = None) -> Tensor:
    """`at_least`: (width, height) of a smaller image that would do."""
    with Image.open(io.BytesIO(data.tobytes()), formats=("JPEG", "PNG", "WEBP")) as image:
        if at_least:
            image.draft("RGB", at_least)
        return pixels_of(image)


def pixels_of(image: Image.Image) -> Tensor:
    """Pixels of a PIL image with 8 bits a channel; what is transparent is put on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
