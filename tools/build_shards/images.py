"""Images on their way into a shard: decoded to be sure, stored as they are, resized where asked."""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from tools.build_shards.errors import InputError

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PNG_END = b"IEND\xaeB`\x82"
PNG_DEPTH = 24  # where the header says how many bits a channel has
MAX_BYTES = 32 * 2**20
"""What the data module reads of one member at most."""


def checked(data: bytes, where: str, max_pixels: int) -> Image.Image:
    """The decoded image; InputError unless it is a whole PNG, JPEG or WebP within the cap."""
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: the image has {len(data):,} bytes; at most {MAX_BYTES:,} fit.")
    try:
        with warnings.catch_warnings():
            # Our own cap below is the stricter one and speaks in numbers.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=tuple(EXTENSIONS))
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(
                    f"{where}: the image has {width} x {height} pixels; at most {max_pixels:,} are"
                    " accepted (--max-pixels)."
                )
            image.load()
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: the image is not a readable PNG, JPEG or WebP.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{where}: the image is too large ({error}).") from error
    except InputError:
        raise
    except Exception as error:  # damaged files raise many kinds from inside the codecs
        raise InputError(f"{where}: the image cannot be decoded ({error}).") from error
    if image.format == "PNG" and PNG_END not in data:
        raise InputError(f"{where}: the image is truncated, its PNG end marker is missing.")
    if image.format == "PNG" and data[PNG_DEPTH] > 8:
        raise InputError(f"{where}: the image has 16 bits a channel; convert it to 8 bits.")
    return image


def prepared(data: bytes, where: str, max_pixels: int, image_size: int | None) -> tuple[str, bytes]:
    """Extension and bytes to store: as given, unless the shorter side exceeds `image_size`."""
    image = checked(data, where, max_pixels)
    extension = EXTENSIONS[str(image.format)]
    if image_size is None or min(image.size) <= image_size:
        return extension, data
    return extension, _reduced(image, image_size)


def _reduced(image: Image.Image, image_size: int) -> bytes:
    """The image with its shorter side at `image_size`, in its own format, upright, no metadata."""
    image_format = str(image.format)
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("L", "RGB", "RGBA"):
        transparent = "A" in upright.getbands() or "transparency" in upright.info
        upright = upright.convert("RGBA" if transparent else "RGB")
    scale = image_size / min(upright.size)
    width, height = (max(image_size, round(side * scale)) for side in upright.size)
    small = upright.resize((width, height), Image.Resampling.BICUBIC)
    small.info.clear()
    out = io.BytesIO()
    if image_format == "PNG":
        small.save(out, "PNG")
    else:
        small.save(out, image_format, quality=95)
    return out.getvalue()
