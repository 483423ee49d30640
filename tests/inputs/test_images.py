import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mhmoe_mm.inputs.images import (
    ImageError,
    checked_header,
    decode_image,
    decode_rest,
    read_header,
)
from tests.datamodules.conftest import encoded

CAP = 10_000
NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[..., :3])
RGBA = Image.fromarray(NOISE)


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), dtype=np.uint8)


def by_pil(data: bytes) -> torch.Tensor:
    """What PIL makes of it, pasted on white where it is transparent."""
    image = Image.open(io.BytesIO(data))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


FILES = {
    "jpeg": encoded(RGB, "JPEG"),
    "jpeg 4:4:4": encoded(RGB, "JPEG", subsampling=0),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg grey": encoded(RGB.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "png grey": encoded(RGB.convert("L"), "PNG"),
    "png 1 bit": encoded(RGB.convert("1"), "PNG"),
    "png palette": encoded(RGB.convert("P"), "PNG"),
    "png palette with transparency": encoded(RGB.convert("P"), "PNG", transparency=3),
    "png rgb with transparency": encoded(RGB, "PNG", transparency=tuple(NOISE[0, 0, :3].tolist())),
    "png rgba": encoded(RGBA, "PNG"),
    "png grey and alpha": encoded(RGBA.convert("LA"), "PNG"),
    "webp lossy": encoded(RGB, "WEBP"),
    "webp lossless": encoded(RGB, "WEBP", lossless=True),
    "webp rgba": encoded(RGBA, "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_pil(name):
    data = FILES[name]
    header = read_header(as_array(data))
    assert (header.height, header.width) == (37, 53)
    pixels = decode_image(as_array(data), CAP)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, by_pil(data))


PHOTO = Image.fromarray(np.kron(NOISE[..., :3], np.ones((4, 5, 1), dtype=np.uint8)))
JPEGS = {
    "usual": encoded(PHOTO, "JPEG"),
    "4:4:4": encoded(PHOTO, "JPEG", subsampling=0),
    "4:2:2": encoded(PHOTO, "JPEG", subsampling=1),
    "progressive": encoded(PHOTO, "JPEG", progressive=True),
    "grey": encoded(PHOTO.convert("L"), "JPEG"),
    "stored as RGB": encoded(PHOTO, "JPEG", keep_rgb=True),
    "restart markers": encoded(PHOTO, "JPEG", restart_marker_blocks=3),
}


@pytest.fixture(params=["simplejpeg", "without"])
def decoder(request, monkeypatch) -> str:
    """With and without the library that need not be there."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr("mhmoe_mm.inputs.images._simplejpeg", lambda: None)
    return request.param


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_decoded_smaller_have_the_pixels_of_pil(name, reduction, decoder):
    data = as_array(JPEGS[name])
    header = checked_header(data)
    assert (header.height, header.width) == (148, 265)
    with Image.open(io.BytesIO(JPEGS[name])) as image:
        image.draft(None, (265 // reduction, 148 // reduction))
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    found = decode_rest(data, header, reduction)
    assert found.shape == (3, -(-148 // reduction), -(-265 // reduction))
    assert torch.equal(found, expected)


def test_damage_shows_as_much_with_simplejpeg_as_without(monkeypatch):
    pytest.importorskip("simplejpeg")
    rng, outcomes = np.random.default_rng(2), []
    for number in range(120):
        noisy = as_array(JPEGS["usual"])
        at = rng.integers(2, len(noisy) if number % 2 else 700, 2)
        noisy[at] = rng.integers(0, 256, 2)
        found = []
        for _ in range(2):
            try:
                found.append(decode_image(noisy))
            except ImageError:
                found.append(None)
            monkeypatch.setattr("mhmoe_mm.inputs.images._simplejpeg", lambda: None)
        monkeypatch.undo()
        assert (found[0] is None) == (found[1] is None)
        assert found[0] is None or torch.equal(found[0], found[1])
        outcomes.append(found[0] is None)
    assert 10 < sum(outcomes) < 110, "the damage tells nothing"


def test_an_image_of_another_size_than_its_header_says_is_refused(decoder):
    data = as_array(JPEGS["usual"])
    wrong = checked_header(data)._replace(height=147)
    with pytest.raises(ImageError, match="its size is not that of its header"):
        decode_rest(data, wrong)


@pytest.mark.parametrize("side", [0, 2])
def test_an_image_without_pixels_is_refused(side):
    data = as_array(JPEGS["usual"])
    at = data.tobytes().index(b"\xff\xc0") + 5 + side
    data[at : at + 2] = 0
    with pytest.raises(ImageError, match="it has no pixels"):
        checked_header(data)


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (7, 5), (10, 200, 30, 0))
    assert (decode_image(as_array(encoded(clear, "PNG")), CAP) == 255).all()


def test_16_bit_images_are_refused():
    deep = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000)
    with pytest.raises(ImageError, match="16 bits"):
        decode_image(as_array(encoded(deep, "PNG")), CAP)


@pytest.mark.parametrize("name", ["jpeg", "png", "png rgba", "webp lossy", "webp rgba"])
def test_cut_images_raise_whatever_is_missing(name):
    data = FILES[name]
    for size in [0, 1, 7, 11, 20, 33, len(data) // 2, len(data) - 40]:
        with pytest.raises(ImageError):
            decode_image(as_array(data[:size]), CAP)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes_either_decode_or_are_a_sample_error(name):
    """Never another exception: it would end a run whatever its error budget."""
    data, rng = FILES[name], np.random.default_rng(1)
    for _ in range(60):
        noisy = as_array(data)
        at = rng.integers(0, min(len(noisy), 700), 3)
        noisy[at] = rng.integers(0, 256, 3)
        with contextlib.suppress(ImageError):
            assert decode_image(noisy, CAP).dtype == torch.uint8


def test_other_formats_are_refused():
    for data in (encoded(RGB, "GIF"), encoded(RGB, "TIFF"), b"<svg/>"):
        with pytest.raises(ImageError, match="neither JPEG, PNG nor WebP"):
            decode_image(as_array(data), CAP)


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes of PNG whose header promises a huge image."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def test_a_pixel_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("mhmoe_mm.inputs.images._decode_with_pil", None)
    with pytest.raises(ImageError, match="30000 x 20000 = 600000000 pixels"):
        decode_image(as_array(png_that_claims(30000, 20000)), 50_000_000)


@pytest.mark.parametrize("name", ["jpeg", "webp lossy", "webp lossless", "webp rgba"])
def test_the_pixel_cap_holds_for_every_format(name):
    assert decode_image(as_array(FILES[name]), 37 * 53).shape == (3, 37, 53)
    with pytest.raises(ImageError, match="53 x 37"):
        decode_image(as_array(FILES[name]), 37 * 53 - 1)
