"""Boxes and masks of images as they are stored, turned and mirrored as EXIF does it with the images."""

import numpy as np
from jaxtyping import Float, Int

from data.vocabulary.images import FIRST_SIDEWAYS
from data.vocabulary.masks import decode_mask, encode_mask

_LEFT_TO_RIGHT = (2, 3, 6, 7)
_TOP_TO_BOTTOM = (3, 4, 7, 8)
"""EXIF's orientations that mirror an image so, after those from 5 on exchanged rows and columns."""


def turn_boxes(
    boxes: Float[np.ndarray, "n 4"],
    sizes: Int[np.ndarray, "n 2"],
    orientations: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "n 4"]:
    """Turn boxes with their images.

    Args:
        sizes: height and width of the images as they are stored.
        orientations: EXIF's, 1 to 8.

    >>> turn_boxes(np.array([[1.0, 0, 3, 2]]), np.array([[5, 8]]), np.array([6]))
    array([[3., 1., 5., 3.]])
    """
    sideways = orientations[:, None] >= FIRST_SIDEWAYS
    left, top, right, bottom = np.where(sideways, boxes[:, [1, 0, 3, 2]], boxes).T
    height, width = np.where(sideways, sizes[:, ::-1], sizes).T
    mirrored, upside_down = (
        np.isin(orientations, kind) for kind in (_LEFT_TO_RIGHT, _TOP_TO_BOTTOM)
    )
    return np.stack(
        [
            np.where(mirrored, width - right, left),
            np.where(upside_down, height - bottom, top),
            np.where(mirrored, width - left, right),
            np.where(upside_down, height - top, bottom),
        ],
        axis=1,
    )


def turn_mask(counts: str, height: int, width: int, orientation: int) -> str:
    """Turn a mask's compressed RLE counts with its image.

    Args:
        height: of the image as it is stored.
        width: likewise.
        orientation: EXIF's, 1 to 8.
    """
    mask = decode_mask(counts, height, width)
    mask = mask.T if orientation >= FIRST_SIDEWAYS else mask
    mask = mask[:, ::-1] if orientation in _LEFT_TO_RIGHT else mask
    mask = mask[::-1] if orientation in _TOP_TO_BOTTOM else mask
    turned: str = encode_mask(mask)["counts"]
    return turned
