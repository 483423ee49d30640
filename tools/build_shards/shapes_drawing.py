"""Pictures of the shapes corpus: drawn large, then averaged down, which gives soft edges."""

import io
import math

from PIL import Image, ImageDraw

from tools.build_shards.shapes_scene import Scene, Shape

INK = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (240, 208, 0),
    "green": (34, 139, 60),
    "blue": (31, 90, 210),
    "purple": (118, 50, 158),
    "pink": (245, 120, 185),
    "black": (20, 20, 20),
}
PAPER = {
    "white": (255, 255, 255),
    "gray": (196, 196, 196),
    "cream": (255, 240, 205),
    "mint": (190, 238, 210),
}
OVERSAMPLING = 8


def png_of(scene: Scene, size: int) -> bytes:
    """The picture of a scene as PNG, `size` pixels wide and high."""
    out = io.BytesIO()
    picture_of(scene, size).save(out, "PNG")
    return out.getvalue()


def picture_of(scene: Scene, size: int) -> Image.Image:
    side = size * OVERSAMPLING
    paper = PAPER[scene.background]
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    for shape in scene.objects:
        _draw_shape(draw, shape, side, paper)
    return image.reduce(OVERSAMPLING)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: Shape, side: int, paper: tuple[int, int, int]
) -> None:
    x, y = (side * at for at in shape.center)
    r = side * shape.radius
    ink = INK[shape.color]
    match shape.shape:
        case "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        case "ring":
            hole = 0.52 * r
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=paper)
        case "square":
            half = 0.86 * r
            draw.rectangle((x - half, y - half, x + half, y + half), fill=ink)
        case "cross":
            arm = 0.34 * r
            draw.rectangle((x - r, y - arm, x + r, y + arm), fill=ink)
            draw.rectangle((x - arm, y - r, x + arm, y + r), fill=ink)
        case "triangle":
            draw.polygon(_corners(x, y + 0.12 * r, [1.12 * r] * 3), fill=ink)
        case "star":
            draw.polygon(_corners(x, y, [1.1 * r, 0.46 * r] * 5), fill=ink)
        case other:
            raise AssertionError(f"nobody draws a {other}")


def _corners(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """Points around (x, y), the first one straight up."""
    turn = 2 * math.pi / len(radii)
    return [
        (x + radius * math.sin(turn * i), y - radius * math.cos(turn * i))
        for i, radius in enumerate(radii)
    ]
