"""Reading and checking image files, as OpenCV's colour mode (MMDetection's) would show them."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from data.errors import InvalidDataset

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)
"""Where Pillow itself stops: more is held for a decompression bomb."""

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is read, whatever a file is called: what OpenCV reads too. Others are no images of
a data set, and the decoder of one, EPS, hands foreign programs to Ghostscript."""

ResizeFilter = Literal["bicubic", "bilinear"]

FILE_MISSING = "image file missing"
SIZE_DIFFERS = "size differs from the image file's"
SIZE_BEFORE_EXIF = "size is that of the image file before EXIF turns it"
TOO_DEEP = "image file of floats or 32-bit integers: save it with 8 or 16 bits"

FIRST_SIDEWAYS = 5
"""Of EXIF's orientations, which from here on exchange width and height."""

Fact = TypeVar("Fact")

_HASH_SIDE = 8
_EVEN = 8
"""Of 255 grey levels that an image's cells span: with fewer its hash says nothing (160 photographs of COCO
span 38 at least, 364 micrographs 39)."""

_TRAILERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TRAILER_WINDOW = 4096


def image_problem(path: Path, width: int, height: int) -> str | None:
    """Why an image cannot be used, or None.

    JPEG and PNG bodies are decoded only where the file does not end as its format demands; files of
    other formats always are.

    Args:
        width: pixels as stated in the annotations, which count the image as it is shown.
        height: likewise.
    """
    try:
        if not path.is_file():
            return FILE_MISSING
        if path.stat().st_size == 0:
            return "image file empty"
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities that Pillow can cope with
            return _problem(file, width, height)
    except Image.DecompressionBombError:
        return "image of gigantic size"
    except (OSError, ValueError):  # no image, no permission, a name that no file can have
        return "image file unreadable"


def _problem(file: BinaryIO, width: int, height: int) -> str | None:
    try:
        image = Image.open(file, formats=FORMATS)
        size, is_too_deep = _shown_size(image), _is_too_deep(image)
    except (Image.DecompressionBombError, OSError, ValueError):
        raise
    except Exception:  # noqa: BLE001  # decoders raise anything over a broken header
        return "image file unreadable"
    if is_too_deep:
        return TOO_DEEP
    if size != (width, height):
        is_exchanged = size == (height, width) and _is_sideways(image)
        return SIZE_BEFORE_EXIF if is_exchanged else SIZE_DIFFERS
    if not _has_trailer(file, image.format):
        try:
            file.seek(0)
            image.load()
        except Exception:  # noqa: BLE001  # likewise over a broken body
            return "image file cut short or damaged"
    return None


def shown_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image file as it is shown; None where it cannot be read."""
    return _of_header(path, _shown_size)


def orientation(path: Path) -> int:
    """How EXIF asks for an image to be turned or mirrored, 1 (as stored) to 8; 1 where it is unreadable."""
    return _of_header(path, _orientation) or 1


def is_in_low_bits(path: Path) -> bool:
    """Whether grey of 16 bits uses the lowest 12 alone, of which hardly any is read; all of it is decoded."""
    return bool(_of_header(path, _is_in_low_bits))


def _is_in_low_bits(image: Image.Image) -> bool:
    return _is_deep_grey(image) and bool(np.asarray(image).max() < 2**12)


def difference_hash(path: Path) -> int | None:
    """Where an image grows lighter from left to right, between cells of 8 rows and 9 columns.

    Returns:
        64 bits, few of which differ between images that are nearly the same; None where an image cannot be
        read, or is even.
    """
    return _of_header(path, _difference_bits)


def _difference_bits(image: Image.Image) -> int | None:
    image.draft("L", (8 * _HASH_SIDE, 8 * _HASH_SIDE))  # a JPEG is decoded no larger than needed
    grey = _as_rgb(image).convert("L")
    cells = np.asarray(grey.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX))
    if np.ptp(cells) < _EVEN:
        return None
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes())


def _of_header(path: Path, look: Callable[[Image.Image], Fact]) -> Fact | None:
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return look(image)
    except Exception:  # noqa: BLE001  # decoders raise anything over a broken header
        return None


def _shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the rotation that EXIF asks for."""
    is_stored = image.format != "TIFF"  # whose size Pillow states as shown
    return image.size[::-1] if is_stored and _is_sideways(image) else image.size


def _is_sideways(image: Image.Image) -> bool:
    return _orientation(image) >= FIRST_SIDEWAYS


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode a PNG to look for EXIF at its end
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(found) if found in range(1, 9) else 1  # as Pillow takes others


def _has_trailer(file: BinaryIO, image_format: str | None) -> bool:
    trailer = _TRAILERS.get(image_format or "")
    if trailer is None:
        return False
    file.seek(max(file.seek(0, io.SEEK_END) - _TRAILER_WINDOW, 0))
    return trailer in file.read()


def read_rgb(path: Path) -> Image.Image:
    """Read an image as RGB, the way up that EXIF says.

    Raises:
        InvalidDataset: the file is missing, not an image, or none of 8 or 16 bits.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if _is_too_deep(image):
                raise InvalidDataset(f"image {path} cannot be used: {TOO_DEEP}")
            return _as_rgb(ImageOps.exif_transpose(image))
    except (OSError, Image.DecompressionBombError) as error:
        raise InvalidDataset(f"image {path} cannot be read: {error}") from error


def read_square(path: Path, resolution: int, resize_filter: ResizeFilter = "bicubic") -> np.ndarray:
    """Read an image as RGB, squashed to a square; uint8 (resolution, resolution, 3).

    Args:
        resize_filter: of Pillow, which averages over what it shrinks.

    Raises:
        InvalidDataset: the file is missing or not an image.
    """
    rgb = read_rgb(path)
    if rgb.size != (resolution, resolution):
        rgb = rgb.resize((resolution, resolution), Image.Resampling[resize_filter.upper()])
    return np.asarray(rgb)


def _is_too_deep(image: Image.Image) -> bool:
    """Whether pixels are floats or 32-bit integers, of which nothing says what is black and what white.

    OpenCV reads none of them. Pillow's mode I is of up to 16 bits in all formats but TIFF.
    """
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 16
    return image.mode == "F"


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I")  # such as I;16, or I itself


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; 16-bit grey keeps its high byte, where Pillow's own conversion clips."""
    if _is_deep_grey(image):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0).astype(np.uint8))
    return image.convert("RGB")
