"""Masks as COCO run-length encodings (column-major, compressed), through pycocotools."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a boolean mask (height, width) as COCO's compressed RLE with `counts` as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """Decode compressed RLE counts to a boolean mask (height, width)."""
    decoded = coco_mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return np.asarray(decoded, dtype=bool)


def segmentation_to_counts(segmentation: Any, height: int, width: int) -> str:
    """Turn any COCO segmentation (polygons, uncompressed or compressed RLE) into RLE counts.

    Raises:
        ValueError: the segmentation is none of the three, or of another size than the image.
    """
    match segmentation:
        case {"size": [rows, columns], "counts": str(counts)} if (rows, columns) == (height, width):
            decode_mask(counts, height, width)  # raises ValueError where the runs do not add up
            return counts
        case {"size": [rows, columns], "counts": list(runs)} if (rows, columns) == (
            height,
            width,
        ) and sum(runs) == height * width:
            return _counts(coco_mask.frPyObjects(segmentation, height, width))
        case [*polygons] if all(_is_polygon(item) for item in polygons):
            return _counts(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    raise ValueError(f"no polygons and no RLE of size {height}×{width}")


def _is_polygon(points: Any) -> bool:
    """Whether this is a list of x, y, … of at least three points."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(isinstance(value, int | float) for value in points)
    )


def _counts(rle: dict[str, Any]) -> str:
    return str(rle["counts"].decode("ascii"))
