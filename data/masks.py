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
        ValueError, TypeError, KeyError: the segmentation is none of the three.
    """
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return segmentation["counts"]
    rle = coco_mask.frPyObjects(segmentation, height, width)
    if isinstance(rle, list):
        rle = coco_mask.merge(rle)
    return str(rle["counts"].decode("ascii"))
