"""Detections in tiles, joined to detections in the whole images."""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from data.vocabulary.boxes import area
from data.vocabulary.tables import BOX_COLUMNS, EDGES, box_array, row_numbers

SAME_OBJECT_IOU = 0.45
"""From this overlap on two detections of a class are one object, seen in two tiles.

Below the half, which is what a tile shows at least of the objects that it has by default.
"""

AT_EDGE = 0.02
"""A box that ends so near to a tile's edge, in shares of its side, is taken to be cut by it."""

CUT_SCORE = 0.5
"""What the score of such a box is multiplied by where it is held against others."""


def join_tiles(detections: pa.Table, tiles: pa.Table) -> pa.Table:
    """Bring detections in tiles to the whole images, each object once.

    Of those of a class that overlap the one of highest score stays, of equal scores the largest; scores of
    those that an edge between tiles cuts count less here, as parts are found as surely as whole objects.

    Args:
        detections: table with schema `data.vocabulary.tables.DETECTIONS`, by the ids and in the pixels of
            the tiles.
        tiles: table with schema `data.vocabulary.tables.TILES`, of one split.

    Returns:
        The same by the ids and in the pixels of the whole images.
    """
    rows = row_numbers(tiles["image_id"].to_numpy(), detections["image_id"].to_numpy())
    places = np.stack([tiles[name].to_numpy() for name in EDGES], axis=1)
    boxes = box_array(detections) + np.tile(places[rows, :2], 2)
    sources = tiles["source_image_id"].to_numpy()
    cut = _is_cut(boxes, places, sources, rows)
    image_ids = sources[rows]
    columns = {name: detections[name] for name in detections.column_names}
    columns |= {"image_id": image_ids, **dict(zip(BOX_COLUMNS, boxes.T, strict=True))}
    joined = pa.table(columns, schema=detections.schema)
    _, labels = np.unique(detections["category_id"].to_numpy(), return_inverse=True)
    priorities = detections["score"].to_numpy() * np.where(cut, CUT_SCORE, 1.0)
    kept = _once(boxes, priorities, labels, image_ids)
    return joined.filter(pa.array(kept))


def _is_cut(
    boxes: Float[np.ndarray, "detections 4"],
    places: Int[np.ndarray, "tiles 4"],
    sources: Int[np.ndarray, " tiles"],
    rows: Int[np.ndarray, " detections"],
) -> Bool[np.ndarray, " detections"]:
    """Whether a box ends at an edge of its tile beyond which the image goes on.

    Args:
        boxes: in pixels of the whole images.
        sources: ids of these.
        rows: tile of each box.
    """
    _, source = np.unique(sources, return_inverse=True)
    lasts = np.zeros((len(places), 2), places.dtype)
    np.maximum.at(lasts, source, places[:, 2:])
    goes_on = np.hstack([places[:, :2] > 0, places[:, 2:] < lasts[source]])
    margins = AT_EDGE * np.tile(places[:, 2:] - places[:, :2], 2)
    at_edge = np.abs(boxes - places[rows]) <= margins[rows]
    return np.asarray((at_edge & goes_on[rows]).any(axis=1))


def _once(
    boxes: Float[np.ndarray, "detections 4"],
    priorities: Float[np.ndarray, " detections"],
    labels: Int[np.ndarray, " detections"],
    image_ids: Int[np.ndarray, " detections"],
) -> Bool[np.ndarray, " detections"]:
    """Which detections stay, image by image."""
    from torch import from_numpy  # noqa: PLC0415  # where images are whole, none waits for torch

    from models.detector.overlaps import suppress_overlaps  # noqa: PLC0415

    kept = np.zeros(len(boxes), bool)
    order = np.lexsort([-area(boxes), image_ids])
    ends = np.flatnonzero(np.diff(image_ids[order])) + 1
    for rows in np.split(order, ends):
        found, score, label = (from_numpy(part[rows]) for part in (boxes, priorities, labels))
        kept[rows[suppress_overlaps(found, score, label, SAME_OBJECT_IOU).numpy()]] = True
    return kept
