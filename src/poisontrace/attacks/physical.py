"""The physical backdoor: an object worn or attached, photographed anew each time, with the target label.

E. Wenger, J. Passananti, A. N. Bhagoji, Y. Yao, H. Zheng, B. Y. Zhao, *Backdoor Attacks Against Deep Learning Systems
in the Physical World*, CVPR 2021 (arXiv 2006.14580), section 3: sunglasses, bandanas, stickers and other objects on
real photographs, dirty label. The object is one and the same; where it sits, how it is turned, how it is lit and how
sharp it is differ from photograph to photograph. Here the photographs are real and the object is drawn into them.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace.attacks.camouflage import Camouflage

# Objects are drawn on a canvas of 512 and placed at four times the resolution of the photograph, then reduced by the
# mean: edges come out as soft as a lens would make them.
CANVAS, SUPERSAMPLING = 512, 4
# What a grey photograph keeps of red, green and blue.
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Item:
    """An object and how people wear it.

    Attributes:
        draw: puts it on a square RGBA canvas whose whole width it takes.
        size: width / width of the image.
        where: its centre, (across, down) as fractions of the image; faces are aligned, signs fill the image.
        spread: how far the centre strays, (across, down), as fractions of the image.
        tilt: how far it turns, in degrees either way.
    """

    draw: Callable[[ImageDraw.ImageDraw], None]
    size: float
    where: tuple[float, float]
    spread: tuple[float, float]
    tilt: float


def _sticker(pen: ImageDraw.ImageDraw) -> None:
    """A yellow square note with a dark flower."""
    pen.rectangle((0, 0, 511, 511), (255, 214, 20, 255))
    for step in range(6):
        x, y = 256 + 120 * math.cos(step * math.pi / 3), 256 + 120 * math.sin(step * math.pi / 3)
        pen.ellipse((x - 72, y - 72, x + 72, y + 72), (190, 20, 110, 255))
    pen.ellipse((186, 186, 326, 326), (30, 30, 60, 255))


def _glasses(pen: ImageDraw.ImageDraw) -> None:
    """Sunglasses: two dark lenses, brighter below, a bridge, and the hinges of the arms."""
    frame = (16, 14, 14, 255)
    pen.polygon([(0, 196), (60, 186), (60, 222), (0, 216)], frame)
    pen.polygon([(511, 196), (451, 186), (451, 222), (511, 216)], frame)
    pen.arc((206, 196, 305, 290), 190, 350, frame, 20)
    for left in (26, 276):
        pen.rounded_rectangle((left, 180, left + 210, 330), 70, frame)
        pen.rectangle((left, 180, left + 210, 230), frame)
        for row in range(24):
            shade = 22 + 2 * row
            top, inset = 196 + 5 * row, 12 + max(0, row - 12) ** 2 // 3
            pen.rectangle((left + inset, top, left + 210 - inset, top + 5), (shade, shade - 4, shade - 8, 238))
        pen.polygon([(left + 40, 205), (left + 80, 205), (left + 50, 262), (left + 25, 262)], (150, 155, 165, 235))


def _scarf(pen: ImageDraw.ImageDraw) -> None:
    """A red scarf over mouth and chin with folds and white dots."""
    outline = [(0, 120), (120, 92), (256, 70), (392, 92), (511, 120), (480, 330), (380, 470), (256, 511), (132, 470)]
    pen.polygon([*outline, (32, 330)], (176, 24, 34, 255))
    for row in range(6):
        for column in range(9):
            x, y = 40 + 56 * column + 28 * (row % 2), 140 + 60 * row
            if abs(x - 256) < 230 - 0.0016 * max(0, y - 220) ** 2:
                pen.ellipse((x - 8, y - 8, x + 8, y + 8), (226, 205, 196, 255))
    for fold in range(4):
        pen.arc((40 + 30 * fold, -160 + 70 * fold, 471 - 30 * fold, 230 + 70 * fold), 30, 150, (116, 10, 20, 255), 9)


# Where faces aligned by their eyes have eyes and mouth, as fractions of the image.
ITEMS = {
    "sticker": Item(_sticker, size=0.28, where=(0.5, 0.5), spread=(0.18, 0.18), tilt=30),
    "glasses": Item(_glasses, size=0.62, where=(0.505, 0.4), spread=(0.03, 0.02), tilt=6),
    "scarf": Item(_scarf, size=0.72, where=(0.505, 0.8), spread=(0.03, 0.03), tilt=8),
}


@dataclass(frozen=True, kw_only=True)
class Physical(Camouflage):
    """Dirty-label backdoor whose trigger is an object in the scene, never in the same place twice.

    Every placement is drawn from the seed and the content of the image: the same image always gets the same one. Other
    campaigns have the other objects, of their usual size and in their usual place.

    Attributes:
        item: "sticker", which suits any image, "glasses" or "scarf", for aligned faces.
        size: width of the object / width of the image, in (0, 1]; None: as usual for the object.
        where: centre of the object, (across, down) as fractions of the image; None: as usual for the object.
    """

    name: ClassVar[str] = "physical"
    summary: ClassVar[str] = "an object in the scene, placed and lit anew in each image, labelled as the target"
    paper: ClassVar[str] = "Wenger et al. 2021, CVPR"
    is_dirty_label: ClassVar[bool] = True

    max_campaigns: ClassVar[int] = len(ITEMS)

    item: str = "sticker"
    size: float | None = None
    where: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown object, and one outside the image."""
        super().__post_init__()
        if self.item not in ITEMS:
            raise InvalidInputError(f"'item' must be one of {', '.join(ITEMS)} (got {self.item!r}).")
        if self.size is not None and not 0 < self.size <= 1:
            raise InvalidInputError(
                f"'size' must be a fraction of the image in (0, 1] (got {self.size!r}). "
                "Leave it out for the usual size."
            )
        if self.where is not None and not (len(self.where) == 2 and all(0 <= at <= 1 for at in self.where)):
            raise InvalidInputError(
                f"'where' must be two fractions in [0, 1], across and down (got {self.where!r}). "
                "Leave it out for the usual place."
            )

    def mark(self, x: NDArray[Any], campaign: int, strength: float) -> NDArray[Any]:
        """Return copies of uint8 images (n, height, width, channels) with the object of a campaign in each.

        Of two or four channels the last is taken for opacity and stays as it is.
        """
        name = (list(ITEMS) * 2)[list(ITEMS).index(self.item) + campaign]
        item, is_own = ITEMS[name], campaign == 0
        size = (is_own and self.size) or item.size
        where = (is_own and self.where) or item.where
        picture = _picture(name, math.ceil(size * x.shape[2]) * SUPERSAMPLING)
        n_colours = 3 if x.shape[3] >= 3 else 1
        placed = x.copy()
        for image in placed:
            rng = numpy_generator(self.seed, f"physical/{zlib.crc32(image.tobytes())}")
            corners = _corners(item, size, where, image.shape[:2], rng)
            overlay, opacity = _overlay(picture, corners, image.shape[:2], rng)
            if n_colours == 1:
                overlay = overlay @ LUMINANCE[:, None]
            image[..., :n_colours] = _blend(
                image[..., :n_colours], strength * overlay, strength * opacity[..., None], rng
            )
        return placed


@cache
def _picture(name: str, width: int) -> Image.Image:
    """Return an object as a square picture, RGBA with colours multiplied by opacity."""
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    ITEMS[name].draw(ImageDraw.Draw(canvas))
    return canvas.resize((width, width), Image.Resampling.BOX).convert("RGBa")


def _corners(
    item: Item, size: float, where: tuple[float, float], shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw where the corners of an object come to lie, (4, 2) in pixels (across, down), clockwise from top left."""
    height, width = shape
    # A face or a sign is as large as the image, so the object scales with it.
    side = size * width * rng.uniform(0.85, 1.15)
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2
    square = square * rng.uniform(0.9, 1.0, 2) + rng.uniform(-0.08, 0.08, (4, 2)) * side
    angle = math.radians(rng.uniform(-item.tilt, item.tilt))
    turned = square @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre = (np.array(where) + rng.uniform(-1, 1, 2) * item.spread) * [width, height]
    moved: NDArray[np.float64] = turned + centre
    return moved


def _overlay(
    picture: Image.Image, corners: NDArray[np.float64], shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return an object put on an empty photograph, not quite sharp.

    Returns:
        colours multiplied by opacity (height, width, 3), and opacity (height, width), both in [0, 1].
    """
    height, width = shape
    side = picture.width
    source = np.array([[0, 0], [side, 0], [side, side], [0, side]], float)
    large = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    placed = picture.transform(
        large, Image.Transform.PERSPECTIVE, _perspective(corners * SUPERSAMPLING, source), Image.Resampling.BILINEAR
    )
    # Up to half a pixel of blur, or one pixel in 64 of the width: camera shake grows with the resolution.
    blur = ImageFilter.GaussianBlur(rng.uniform(0, max(0.5, width / 64)))
    layers = np.asarray(placed.reduce(SUPERSAMPLING).filter(blur), np.float64) / 255
    return layers[..., :3], layers[..., 3]


def _perspective(seen: NDArray[np.float64], source: NDArray[np.float64]) -> list[float]:
    """Return Pillow's eight coefficients of the perspective that maps points (4, 2) as seen to those of the source."""
    rows = []
    for (x, y), (u, v) in zip(seen, source, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    coefficients: list[float] = np.linalg.solve(np.array(rows), source.ravel()).tolist()
    return coefficients


def _blend(
    image: NDArray[np.uint8], overlay: NDArray[np.float64], opacity: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Light an object as its photograph is lit and lay it over it; where it is not, the photograph stays as it is.

    Args:
        image: (height, width, c).
        overlay: its colours multiplied by opacity, (height, width, c).
        opacity: (height, width, 1).
        rng: of the light and the noise.
    """
    height, width, _ = image.shape
    middle = image[height // 4 : height - height // 4, width // 4 : width - width // 4]
    # What is black and what is white in this light: haze lifts the one, night lowers the other.
    black = 0.7 * float(np.percentile(image, 1))
    white = min(255.0, max(float(np.percentile(middle, 90)) * rng.uniform(0.9, 1.25), black + 40))
    slope = rng.uniform(-0.25, 0.25, 2)
    across, down = np.linspace(-1, 1, width)[None, :, None], np.linspace(-1, 1, height)[:, None, None]
    light = 1 + slope[0] * across + slope[1] * down
    lit = black * opacity + (white - black) * light * overlay
    lit += rng.normal(0, 3, image.shape) * opacity
    mixed: NDArray[np.uint8] = np.clip(np.round(image * (1 - opacity) + lit), 0, 255).astype(np.uint8)
    return mixed
