"""Perception-aware attributes: which labelled objects a detector finds (paper section 3.1).

A ground-truth box is `easy` if some detection with score > γ has IoU > β with it, else `hard`. Both
comparisons are strict. The literal rule is class-agnostic and many-to-one.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field

from data.boxes import iou
from data.layouts import PerceptionAttribute
from data.tables import ATTRIBUTES, Dataset, Split, box_array


class AttributeConfig(BaseModel):
    """Thresholds of the perception-aware attribute; defaults are our decision, see paper.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou_threshold: float = Field(0.5, ge=0, lt=1, description="β: an easy box overlaps by more.")
    score_threshold: float = Field(0.3, ge=0, lt=1, description="γ: kept detections score more.")
    class_aware: bool = Field(False, description="Count only detections of the box's own class.")


@dataclass(frozen=True, slots=True)
class Matches:
    """The best detection of every ground-truth box.

    Attributes:
        best_iou: float64 (num_boxes,), 0 where nothing overlaps.
        detection: index of that detection, -1 where nothing overlaps. Of equal IoUs the first wins.
    """

    best_iou: Float[np.ndarray, " boxes"]
    detection: Int[np.ndarray, " boxes"]


def match_boxes(
    boxes: Float[np.ndarray, "boxes 4"],
    category_ids: Int[np.ndarray, " boxes"],
    detected_boxes: Float[np.ndarray, "detections 4"],
    detected_category_ids: Int[np.ndarray, " detections"],
    *,
    class_aware: bool = False,
) -> Matches:
    """Find each box's best detection among the detections of one image.

    >>> boxes = np.array([[0.0, 0, 2, 2]])
    >>> match_boxes(boxes, np.array([1]), boxes + 1, np.array([2])).best_iou
    array([0.14285714])
    """
    if len(detected_boxes) == 0:
        return Matches(np.zeros(len(boxes)), np.full(len(boxes), -1))
    overlaps = iou(boxes, detected_boxes)
    if class_aware:
        overlaps = np.where(category_ids[:, None] == detected_category_ids[None], overlaps, 0.0)
    best = overlaps.argmax(axis=1)
    best_iou = overlaps[np.arange(len(boxes)), best]
    return Matches(best_iou, np.where(best_iou > 0, best, -1))


def extract_attributes(
    dataset: Dataset, detections: pa.Table, split: Split, config: AttributeConfig
) -> pa.Table:
    """Label every thing of a split that is not a crowd `easy` or `hard`.

    Args:
        detections: table with schema `DETECTIONS`.

    Returns:
        A table with schema `ATTRIBUTES`, one row per object, by image and object id.
    """
    wanted = (pc.field("split") == split) & pc.field("is_thing") & ~pc.field("is_crowd")
    objects = dataset.objects.filter(wanted).sort_by(
        [("image_id", "ascending"), ("object_id", "ascending")]
    )
    kept = detections.filter(
        (pc.field("split") == split) & (pc.field("score") > config.score_threshold)
    ).sort_by("image_id")
    boxes, image_ids = box_array(objects), objects["image_id"].to_numpy()
    labels = objects["category_id"].to_numpy()
    found_boxes, found_labels = box_array(kept), kept["category_id"].to_numpy()
    best_iou, best = np.zeros(len(boxes)), np.full(len(boxes), -1)
    image_keys, starts = np.unique(image_ids, return_index=True)
    ends = np.append(starts[1:], len(image_ids))
    found_starts = np.searchsorted(kept["image_id"].to_numpy(), image_keys, side="left")
    found_ends = np.searchsorted(kept["image_id"].to_numpy(), image_keys, side="right")
    for start, end, first, last in zip(starts, ends, found_starts, found_ends, strict=True):
        matches = match_boxes(
            boxes[start:end],
            labels[start:end],
            found_boxes[first:last],
            found_labels[first:last],
            class_aware=config.class_aware,
        )
        best_iou[start:end] = matches.best_iou
        best[start:end] = np.where(matches.detection >= 0, matches.detection + first, -1)
    matched = pa.array(best, mask=best < 0)
    easy = best_iou > config.iou_threshold
    return pa.table(
        {
            **{name: objects[name] for name in ("split", "object_id", "image_id", "category_id")},
            "best_iou": best_iou,
            "matched_score": kept["score"].take(matched),
            "matched_category_id": kept["category_id"].take(matched),
            "attribute": np.where(easy, PerceptionAttribute.EASY, PerceptionAttribute.HARD),
        },
        schema=ATTRIBUTES,
    )
