"""Verified labels: which objects of a synthetic set a detector finds, and what becomes of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from data.attributes.calibration import Rows, size_groups
from data.attributes.matching import class_groups, greedy, match_one_to_one
from data.attributes.options import VerificationOptions
from data.vocabulary.boxes import area, xywh_to_xyxy, xyxy_to_xywh
from data.vocabulary.tables import box_array

Record = Mapping[str, Any]
"""An entry of a COCO file."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a detector finds of a set's objects, and which of them stay.

    Attributes:
        found: which objects are.
        kept: which objects stay.
        moved: which objects get the boxes they were found with.
        found_boxes: those boxes, xyxy in pixels; of objects that are not found their own.
        unasked: category ids of the detections that are of no object that was asked for.
    """

    found: Bool[np.ndarray, " objects"]
    kept: Bool[np.ndarray, " objects"]
    moved: Bool[np.ndarray, " objects"]
    found_boxes: Float[np.ndarray, "objects 4"]
    unasked: Int[np.ndarray, " detections"]


def verify(
    annotations: Sequence[Record], detections: pa.Table, options: VerificationOptions
) -> Verification:
    """Give each object a detection of its own, of its class; those of highest score choose first.

    Args:
        annotations: of a COCO file.
        detections: table with schema `DETECTIONS`, in the same pixels.
    """
    confident = pc.field("score") > pa.scalar(options.score_threshold, pa.float32())
    table = detections.filter(confident).sort_by([("score", "descending")])
    image_ids, category_ids = (_column(annotations, k) for k in ("image_id", "category_id"))
    found_ids, found_labels = (table[k].to_numpy() for k in ("image_id", "category_id"))
    groups, found_groups = class_groups(image_ids, category_ids, found_ids, found_labels)
    boxes, found_boxes = _boxes(annotations), box_array(table)
    matches = match_one_to_one(
        boxes,
        groups,
        found_boxes,
        found_groups,
        assign=greedy,
        iou_threshold=options.iou_threshold,
    )
    found = matches.detection >= 0
    chosen = matches.detection[found]
    boxes[found] = found_boxes[chosen]
    stays = {"drop-object": found, "drop-image": ~np.isin(image_ids, image_ids[~found])}
    return Verification(
        found=found,
        kept=stays.get(options.action, np.ones(len(found), bool)),
        moved=found & (options.action == "refine"),
        found_boxes=boxes,
        unasked=np.delete(found_labels, chosen),
    )


def verified_annotations(
    annotations: Sequence[Record], result: Verification, sizes: Mapping[int, tuple[int, int]]
) -> list[Record]:
    """The objects that stay, with the boxes that they get.

    Args:
        sizes: width and height of each image; not all detectors end their boxes there.
    """
    return [
        _moved(item, box, sizes[item["image_id"]]) if moved else item
        for item, kept, moved, box in zip(
            annotations, result.kept, result.moved, result.found_boxes, strict=True
        )
        if kept
    ]


def _moved(annotation: Record, box: Float[np.ndarray, " 4"], size: tuple[int, int]) -> Record:
    inside = np.clip(box, 0, np.tile(size, 2))
    return {**annotation, "bbox": xyxy_to_xywh(inside).tolist(), "area": float(area(inside))}


def verification_counts(
    annotations: Sequence[Record], result: Verification, names: Mapping[int, str]
) -> dict[str, Rows]:
    """What was found, kept, dropped and moved by class, by size and by attribute.

    Args:
        names: of the classes, by category id.
    """
    labels = _column(annotations, "category_id")
    attributes = np.array([item["attribute"] or "none" for item in annotations])
    groups = {
        "class": {name: labels == category_id for category_id, name in names.items()},
        "size": size_groups(area(_boxes(annotations))),
        "attribute": {name: attributes == name for name in np.unique(attributes).tolist()},
    }
    return {
        title: [{title: name, **_counts(result, of)} for name, of in parts.items() if of.any()]
        for title, parts in groups.items()
    }


def unasked_counts(result: Verification, names: Mapping[int, str]) -> dict[str, int]:
    """How many objects of each class are found that nobody asked for; other classes are not counted."""
    counts = {name: int((result.unasked == key).sum()) for key, name in names.items()}
    return {name: count for name, count in counts.items() if count}


def _counts(result: Verification, of: Bool[np.ndarray, " objects"]) -> dict[str, int]:
    return {
        "objects": int(of.sum()),
        "found": int(result.found[of].sum()),
        "kept": int(result.kept[of].sum()),
        "dropped": int((~result.kept[of]).sum()),
        "moved": int(result.moved[of].sum()),
    }


def _column(annotations: Sequence[Record], name: str) -> Int[np.ndarray, " objects"]:
    return np.array([item[name] for item in annotations], np.int64)


def _boxes(annotations: Sequence[Record]) -> Float[np.ndarray, "objects 4"]:
    return xywh_to_xyxy(np.array([item["bbox"] for item in annotations], np.float64).reshape(-1, 4))
