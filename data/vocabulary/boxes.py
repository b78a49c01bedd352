"""Box geometry. `boxes` are xyxy in absolute pixels, half-open; any other convention says so in its name."""

import numpy as np
from jaxtyping import Float


def xywh_to_xyxy(boxes_xywh: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 4"]:
    """Convert COCO's (left, top, width, height) to (left, top, right, bottom).

    >>> xywh_to_xyxy(np.array([[1.0, 2.0, 3.0, 4.0]]))
    array([[1., 2., 4., 6.]])
    """
    return np.concatenate([boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 4"]:
    """Convert (left, top, right, bottom) to COCO's (left, top, width, height).

    >>> xyxy_to_xywh(np.array([[1.0, 2.0, 4.0, 6.0]]))
    array([[1., 2., 3., 4.]])
    """
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xyxy_to_coco(boxes: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 4"]:
    """Convert to (left, top, width, height) as a COCO file states them, undoing `xywh_to_xyxy`.

    The difference of two edges is off in its last bits; a side is taken to be the number of at most
    nine decimals that, added to the corner, gives the other edge, where there is one.

    >>> xyxy_to_coco(xywh_to_xyxy(np.array([[212.6, 55.62, 53.04, 53.46]]))).tolist()
    [[212.6, 55.62, 53.04, 53.46]]
    """
    boxes_xywh = xyxy_to_xywh(boxes)
    short = boxes_xywh[..., 2:].round(9)
    exact = boxes[..., :2] + short == boxes[..., 2:]
    sides = np.where(exact, short, boxes_xywh[..., 2:])
    return np.concatenate([boxes_xywh[..., :2], sides], axis=-1)


def area(boxes: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch"]:
    """Area in square pixels; zero for boxes that are empty or inverted."""
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou_xywh(
    boxes_xywh: Float[np.ndarray, "*#batch 4"], other_xywh: Float[np.ndarray, "*#batch 4"]
) -> Float[np.ndarray, "*#batch"]:
    """Intersection over union of boxes with their partners; 0 where the union is empty.

    The operations and their order are those of pycocotools, so that results in float64 equal its
    `iou` to the last bit.

    >>> iou_xywh(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 2, 2]]))
    array([0.33333333])
    """
    left, top, width, height = np.moveaxis(boxes_xywh, -1, 0)
    left_2, top_2, width_2, height_2 = np.moveaxis(other_xywh, -1, 0)
    common_width = np.minimum(left + width, left_2 + width_2) - np.maximum(left, left_2)
    common_height = np.minimum(top + height, top_2 + height_2) - np.maximum(top, top_2)
    intersection = np.maximum(common_width, 0) * np.maximum(common_height, 0)
    union = width * height + width_2 * height_2 - intersection
    return intersection / np.maximum(union, np.finfo(np.float64).tiny)


def iou(
    boxes: Float[np.ndarray, "n 4"], other: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every pair, in float64; 0 where the union is empty.

    It equals pycocotools' `iou` to the last bit, of `boxes` as a COCO file states them (see
    `xyxy_to_coco`) and of `other` in float32, as detections are kept.

    >>> iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [0, 0, 2, 2]]))
    array([[0.33333333, 1.        ]])
    """
    boxes_xywh = xyxy_to_coco(boxes.astype(np.float64))
    return iou_xywh(boxes_xywh[:, None], xyxy_to_xywh(other.astype(np.float64))[None])


def overlap(
    boxes: Float[np.ndarray, "*#batch 4"], other: Float[np.ndarray, "*#batch 4"]
) -> Float[np.ndarray, "*#batch"]:
    """Intersection of boxes with their partners over the smaller of the two areas, which are not empty.

    >>> overlap(np.array([[0.0, 0, 4, 4]]), np.array([[3.0, 0, 5, 1], [1, 1, 2, 2]]))
    array([0.5, 1. ])
    """
    corners = (
        np.maximum(boxes[..., :2], other[..., :2]),
        np.minimum(boxes[..., 2:], other[..., 2:]),
    )
    smaller = np.minimum(area(boxes), area(other))
    return np.asarray(area(np.concatenate(corners, axis=-1)) / smaller)


def mask_to_box(mask: np.ndarray) -> np.ndarray:
    """Tightest half-open box around a non-empty boolean mask of shape (height, width).

    Raises:
        ValueError: the mask has no foreground pixel.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise ValueError("mask has no foreground pixel")
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
