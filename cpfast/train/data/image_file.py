"""One image file: what its header says, and its pixels as a network is given them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cpfast.train.errors import UserError, first_line, require

# of Pillow; others (16-bit greyscale, say) lose what they hold in the conversion to 8 bits
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
GREY = ("1", "L", "LA")
HEIF = (".heic", ".heif")
ORIENTATION = 274  # EXIF 2.3
# By that tag, how Pillow turns what is stored upright.
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
SIDEWAYS = (5, 6, 7, 8)


class Seen(NamedTuple):
    """What a file's header says of its image, upright."""

    height: int
    width: int
    is_colour: bool


def look(path: str | Path, content: bytes | None = None) -> Seen:
    """Of `content`, where the file is in memory already; `path` then only names it. Without
    decoding, but that of PNG, whose orientation may stand behind the pixels, and of
    TIFF, which Pillow turns as it loads it.

    Raises:
        UserError: naming the file, where it is no image or of a mode not in `MODES`.
    """
    with _opened(path, content) as image:
        is_colour = image.mode not in GREY
        width, height = image.size
        if width == height:
            return Seen(height, width, is_colour)
        if image.format == "TIFF":
            image.load()
            width, height = image.size
        if image.getexif().get(ORIENTATION) in SIDEWAYS:
            width, height = height, width
        return Seen(height, width, is_colour)


def read_image(path: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """An image as a network is given it, in training and in prediction: uint8 [H, W, C].

    It is turned upright by its EXIF orientation, laid over white where it is transparent, and
    converted to 8 bits of grey or RGB.

    Args:
        size: height and width: it is resized until it covers them, antialiased (Pillow's
            bilinear filter, as torchvision's default), and what stands out is cropped on both
            sides alike. None: as it is.
        channels: 1 for grey, 3 for RGB.

    Raises:
        UserError: naming the file that cannot be read.
    """
    return read(path, size, channels)[0]


def read(
    path: str | Path, size: tuple[int, int] | None, channels: int, content: bytes | None = None
) -> tuple[np.ndarray, bool]:
    """As `read_image`, and whether it was transparent; `content` as of `look`."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    images = require("PIL.Image", "reading images")
    with _opened(path, content) as image:
        drafted = None
        if size is not None:
            # JPEG is decoded at a half, a quarter or an eighth, twice the size at least: of a
            # photograph of 12 megapixels that takes a quarter of the time.
            drafted = image.draft(None, (2 * max(size), 2 * max(size)))
        is_grey = image.mode in GREY
        alpha = _alpha(image)
        image.load()
        orientation = image.getexif().get(ORIENTATION)
        # From a palette with transparency to RGB, Pillow warns.
        shown = image.convert("RGBA") if image.mode == "P" else image
        if alpha is not None:
            white = images.new("RGB", image.size, "white")
            white.paste(shown.convert("RGB"), mask=alpha)
            shown = white
        # By way of RGB: from some modes there is no other.
        shown = shown.convert("L" if is_grey and channels == 1 else "RGB")
        if channels == 1:
            shown = shown.convert("L")
        if size is not None:
            # Of a draft the last pixels lie beyond the image in part.
            extent = image.size if drafted is None else drafted[1][2:]
            stored = size if orientation in SIDEWAYS else size[::-1]
            box = _middle(extent, stored)
            shown = shown.resize(stored, images.Resampling.BILINEAR, box)
        if orientation in TURNS:
            shown = shown.transpose(images.Transpose[TURNS[orientation]])
        pixels = np.asarray(shown)
    return pixels.reshape(*pixels.shape[:2], channels), alpha is not None


def _middle(
    extent: tuple[float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest part in the middle of an image of that width and
    height that has the proportions of `size`."""
    scale = min(extent[0] / size[0], extent[1] / size[1])
    part = [min(whole, side * scale) for whole, side in zip(extent, size, strict=True)]
    left, top = ((whole - side) / 2 for whole, side in zip(extent, part, strict=True))
    return left, top, min(left + part[0], extent[0]), min(top + part[1], extent[1])


@contextmanager
def _opened(path: str | Path, content: bytes | None) -> Iterator[Any]:
    """A Pillow image, of which whatever cannot be read is a UserError."""
    images = require("PIL.Image", "reading images")
    if str(path).lower().endswith(HEIF):
        _register_heif(path)
    try:
        # Pillow maps some formats that it is given by name, and the process is killed where
        # a mapped file is cut.
        with _file(path, content) as file, images.open(file) as image:
            if image.mode not in MODES:
                raise UserError(
                    f"{path}: an image of mode {image.mode!r}; expected {', '.join(MODES)}"
                )
            yield image
    except UserError:
        raise
    # Pillow's plugins raise nearly anything on a damaged file.
    except Exception as error:
        raise UserError(f"cannot read image {path}: {first_line(error)}") from error


def _file(path: str | Path, content: bytes | None) -> BinaryIO:
    return open(path, "rb") if content is None else io.BytesIO(content)


def _register_heif(path: str | Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError(
            f"{path}: HEIC, which Pillow cannot read by itself: pip install pillow-heif, or "
            "convert such files to JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def _alpha(image: Any) -> Any:
    """How opaque each pixel of a Pillow image is that is not loaded yet, as a Pillow image of mode
    L; None where all are, fully."""
    images = require("PIL.Image", "reading images")
    if image.mode in ("LA", "P", "RGBA"):
        alpha = image.convert("RGBA").getchannel("A")
        return alpha if alpha.getextrema()[0] < 255 else None
    if "transparency" not in image.info:
        return None
    # The grey or colour that stands for transparent, in PNG of as many bits as the file has; what
    # Pillow makes of the pixels has 8. Of 16 bits the lower ones are lost: a colour that differs
    # in them alone counts as transparent too.
    key = np.array(image.info["transparency"])
    stored = image.tile[0][3] if image.format == "PNG" else ""
    key = key >> 8 if stored == "RGB;16B" else key * {"L;2": 85, "L;4": 17}.get(stored, 1)
    pixels = np.asarray(image.convert("L" if image.mode == "1" else image.mode))
    missing = (np.atleast_3d(pixels) == key).all(-1)
    return images.fromarray(np.where(missing, 0, 255).astype(np.uint8)) if missing.any() else None
