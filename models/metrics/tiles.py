"""Detections in tiles, joined to detections in the whole images."""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from data.vocabulary.boxes import area
from data.vocabulary.tables import BOX_COLUMNS, box_array

SAME_OBJECT_IOU = 0.45
"""From this overlap on two detections of a class are one object, seen in two tiles.

Below the half, which is what a tile shows at least of the objects that it has by default.
"""


def join_tiles(detections: pa.Table, tiles: pa.Table) -> pa.Table:
    """Bring detections in tiles to the whole images, each object once.

    Of those of a class that overlap the one of highest score stays, of equal scores the largest: the one
    that is cut the least.

    Args:
        detections: table with schema `data.vocabulary.tables.DETECTIONS`, by the ids and in the pixels of
            the tiles.
        tiles: table with schema `data.vocabulary.tables.TILES`, of one split.

    Returns:
        The same by the ids and in the pixels of the whole images.
    """
    tile_ids = tiles["image_id"].to_numpy()
    order = np.argsort(tile_ids)
    rows = order[np.searchsorted(tile_ids, detections["image_id"].to_numpy(), sorter=order)]
    corners = np.stack([tiles["left"].to_numpy()[rows], tiles["top"].to_numpy()[rows]], axis=1)
    boxes = box_array(detections) + np.tile(corners, 2)
    image_ids = tiles["source_image_id"].to_numpy()[rows]
    columns = {name: detections[name] for name in detections.column_names}
    columns |= {"image_id": image_ids, **dict(zip(BOX_COLUMNS, boxes.T, strict=True))}
    joined = pa.table(columns, schema=detections.schema)
    _, labels = np.unique(detections["category_id"].to_numpy(), return_inverse=True)
    kept = _once(boxes, detections["score"].to_numpy().astype(np.float64), labels, image_ids)
    return joined.filter(pa.array(kept))


def _once(
    boxes: Float[np.ndarray, "detections 4"],
    scores: Float[np.ndarray, " detections"],
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
        found, score, label = (from_numpy(part[rows]) for part in (boxes, scores, labels))
        kept[rows[suppress_overlaps(found, score, label, SAME_OBJECT_IOU).numpy()]] = True
    return kept
