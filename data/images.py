"""Reading image files."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.errors import InvalidDataset


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as it is shown, read from its header; None if it is no image."""
    try:
        with Image.open(path) as image:
            transposed = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if transposed else image.size
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None


def read_square(path: Path, resolution: int) -> np.ndarray:
    """Read an image as RGB, squashed to a square; uint8 (resolution, resolution, 3).

    Raises:
        InvalidDataset: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            rgb = ImageOps.exif_transpose(image).convert("RGB")
            if rgb.size != (resolution, resolution):
                rgb = rgb.resize((resolution, resolution), Image.Resampling.BICUBIC)
            return np.asarray(rgb)
    except OSError as error:
        raise InvalidDataset(f"image {path} cannot be read: {error}") from error
