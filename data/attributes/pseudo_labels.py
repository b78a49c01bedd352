"""Pseudo-labels: what a detector is sure of in images without labels, as things of a data set."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from data.vocabulary.boxes import area
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS, OBJECTS, box_array, row_numbers


def sure_detections(
    detections: pa.Table, images: pa.Table, category_ids: Collection[int], score_threshold: float
) -> tuple[pa.Table, dict[str, int]]:
    """Choose the detections that score above a threshold, and clip them to their images.

    Args:
        detections: table with schema `DETECTIONS`, of these images.
        images: table with schema `IMAGES`, of one split.
        category_ids: of the things of the data set.

    Returns:
        A table with schema `DETECTIONS`, and how many were left out by the first reason that applies.
    """
    rows = row_numbers(images["image_id"].to_numpy(), detections["image_id"].to_numpy())
    sizes = np.stack([images["width"].to_numpy(), images["height"].to_numpy()], axis=1)[rows]
    boxes = box_array(detections).clip(0, np.tile(sizes, 2))
    score = f"score not above {score_threshold:g}"
    reasons = {
        score: detections["score"].to_numpy() <= np.float32(score_threshold),
        "class not of the data set": ~np.isin(detections["category_id"], list(category_ids)),
        "box without area in the image": area(boxes) == 0,
    }
    keep = np.ones(len(rows), bool)
    dropped = {}
    for reason, applies in reasons.items():
        dropped[reason] = int((keep & applies).sum())
        keep &= ~applies
    columns = {name: detections[name] for name in DETECTIONS.names}
    edges = dict(zip(BOX_COLUMNS, boxes.T.astype(np.float32), strict=True))
    return pa.table(columns | edges, DETECTIONS).filter(pa.array(keep)), dropped


def pseudo_objects(detections: pa.Table) -> pa.Table:
    """Turn detections into things.

    Args:
        detections: table with schema `DETECTIONS`.

    Returns:
        A table with schema `OBJECTS`, row by row; ids are numbered from 1.
    """
    count = detections.num_rows
    given = ("split", "image_id", "category_id", *BOX_COLUMNS)
    columns = {name: detections[name].cast(OBJECTS.field(name).type) for name in given} | {
        "object_id": np.arange(1, count + 1),
        "is_thing": np.ones(count, bool),
        "is_crowd": np.zeros(count, bool),
        "area": area(box_array(detections)),
        "mask": pa.nulls(count, pa.string()),
        "difficulty": pa.nulls(count, pa.string()),
    }
    return pa.table(columns, OBJECTS)
