"""Pictures for people: images with boxes, sheets of images, data URIs."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from data.layouts.layout import Layout, PerceptionAttribute, evenly_spaced, read_layouts
from data.vocabulary.images import read_rgb, read_square
from data.vocabulary.masks import decode_mask
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset

_COLOURS = {
    PerceptionAttribute.EASY: (40, 200, 90),
    PerceptionAttribute.HARD: (235, 60, 60),
    None: (70, 130, 235),
}
"""Easy is green, hard is red, no attribute is blue."""

_GAP = 3
_THUMBNAIL = 96
"""Side in pixels."""

_SHEET_IMAGES = 24
"""Of a split."""

_TINT = 0.4
"""Opacity of a mask's colour."""

SMALL = 128
"""Longest side, pixels, up to which every pixel of a picture is meant to be seen."""

_LARGEST = 256
"""Longest side of a picture on a page, pixels."""

_JPEG_QUALITY = 85


def draw_layout(image: np.ndarray, layout: Layout, scale: int = 2) -> np.ndarray:
    """Enlarge an image and draw the layout's things on it, coloured by attribute.

    Args:
        image: uint8 (height, width, 3), of any size; the layout is fitted to it.
        scale: a whole factor.

    Returns:
        uint8 (scale * height, scale * width, 3).
    """
    height, width = image.shape[0] * scale, image.shape[1] * scale
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
    things = layout.is_thing.astype(bool)
    attributes = [item for item, thing in zip(layout.attributes, things, strict=True) if thing]
    return draw_boxes(np.asarray(picture), layout.boxes_normalized[things], attributes)


def draw_boxes(
    image: np.ndarray,
    boxes_normalized: np.ndarray,
    attributes: Sequence[PerceptionAttribute | None],
    line: int = 1,
) -> np.ndarray:
    """Draw boxes on a copy of a uint8 image, coloured by attribute.

    Args:
        boxes_normalized: xyxy in fractions of the image's sides (num_boxes, 4).
        attributes: one per box.
        line: width of the lines, pixels.
    """
    picture = Image.fromarray(image)
    height, width = image.shape[:2]
    pen = ImageDraw.Draw(picture)
    for box, attribute in zip(boxes_normalized, attributes, strict=True):
        left, top, right, bottom = box * [width, height, width, height]
        edge = (left, top, max(right - 1, left), max(bottom - 1, top))
        pen.rectangle(edge, outline=_COLOURS[attribute], width=line)
    return np.asarray(picture)


def draw_masks(image: np.ndarray, layout: Layout) -> np.ndarray:
    """Tint the things' masks by attribute; objects without a mask are left as they are.

    Args:
        image: uint8 (height, width, 3), of any size; the masks are fitted to it.

    Returns:
        uint8 of the same shape.
    """
    tinted = image.astype(np.float64)
    for counts, thing, attribute in zip(
        layout.masks, layout.is_thing, layout.attributes, strict=True
    ):
        if thing and counts is not None:
            mask = Image.fromarray(decode_mask(counts, layout.height, layout.width))
            inside = np.asarray(mask.resize((image.shape[1], image.shape[0])))
            tinted[inside] += _TINT * (np.array(_COLOURS[attribute]) - tinted[inside])
    return tinted.round().astype(np.uint8)


def page_picture(path: Path) -> np.ndarray:
    """Read an image in its proportions as a page has room for it.

    Returns:
        uint8 (height, width, 3): small images enlarged by a whole factor, to `SMALL` at most, large
        ones made smaller.

    Raises:
        InvalidDataset: the file is missing or not an image.
    """
    image = read_rgb(path)
    longest = max(image.size)
    if longest > _LARGEST:
        width, height = (max(round(side * _LARGEST / longest), 1) for side in image.size)
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    factor = max(SMALL // longest, 1)
    size = (image.width * factor, image.height * factor)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def crop(path: Path, box: np.ndarray, side: int) -> np.ndarray:
    """Cut a box (xyxy, pixels) out of an image file with a third of its size around it.

    Returns:
        uint8 (side, side, 3); black beyond the image's edges.
    """
    left, top, right, bottom = box.tolist()
    reach = max(right - left, bottom - top) * 5 / 6
    x, y = (left + right) / 2, (top + bottom) / 2
    window = tuple(round(value) for value in (x - reach, y - reach, x + reach, y + reach))
    cut = read_rgb(path).crop(window)
    return np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))


def contact_sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Arrange uint8 images of one size in rows on white; short rows are filled with white.

    Raises:
        ValueError: there is no image.
    """
    if not any(len(row) for row in rows):
        raise ValueError("a contact sheet needs at least one image")
    height, width = next(image.shape[:2] for row in rows for image in row)
    columns = max(len(row) for row in rows)
    sheet = np.full(
        (len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + _GAP), j * (width + _GAP)
            sheet[top : top + height, left : left + width] = image
    return sheet


def layout_sheet(items: Iterable[tuple[Path, Layout]]) -> np.ndarray:
    """Draw image files as thumbnails with the boxes of their layouts, eight in a row."""
    return contact_sheet(
        in_rows([draw_layout(read_square(path, _THUMBNAIL), layout, 1) for path, layout in items])
    )


def split_sheet(dataset: Dataset, split: Split, attributes: pa.Table | None = None) -> np.ndarray:
    """Draw images of a split, evenly spaced, with the boxes of their things."""
    paths = dict(dataset.image_paths(split))
    layouts = evenly_spaced(read_layouts(dataset, attributes, split), _SHEET_IMAGES)
    return layout_sheet((paths[item.image_id], item) for item in layouts)


def in_rows(images: Sequence[np.ndarray], columns: int = 8) -> list[Sequence[np.ndarray]]:
    """Cut a sequence of images into rows for a contact sheet."""
    return [images[start : start + columns] for start in range(0, len(images), columns)]


def png_bytes(image: np.ndarray) -> bytes:
    """Encode a uint8 image as PNG, as small as it gets."""
    return _encoded(image, "PNG", optimize=True)


def picture_uri(image: np.ndarray) -> str:
    """Encode a uint8 image for use in HTML: small ones without loss and fast, others as JPEG."""
    if max(image.shape[:2]) <= SMALL:
        return data_uri(_encoded(image, "PNG"))
    jpeg = _encoded(image, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return data_uri(jpeg, "jpeg")


def _encoded(image: np.ndarray, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def data_uri(content: bytes, form: str = "png") -> str:
    """Encode PNG bytes, or those of an image of another format, for use in HTML or Markdown."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode('ascii')}"
