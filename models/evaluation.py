"""COCO metrics of detections, through faster-coco-eval (equal to pycocotools, many times faster)."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from faster_coco_eval import COCO, COCOeval_faster

from data.attributes import match_boxes
from data.boxes import xyxy_to_xywh
from data.tables import box_array


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """COCO's twelve numbers that matter here; -1 where there is no object of that size.

    Attributes:
        map: average precision at IoU 0.50:0.95.
        map50: at IoU 0.50.
        map75: at IoU 0.75.
        map_small: of objects under 32² pixels.
        map_medium: of objects from 32² to 96² pixels.
        map_large: of objects over 96² pixels.
        mar100: average recall with at most 100 detections an image.
    """

    map: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    mar100: float

    def as_row(self) -> dict[str, float]:
        """The numbers as a table row."""
        return asdict(self)


def detection_recall(
    truth: Mapping[int, tuple[np.ndarray, np.ndarray]],
    detections: pa.Table,
    *,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
) -> float:
    """Share of true boxes that have a detection of their class, score and IoU at the limits.

    Args:
        truth: image id to boxes (num_boxes, 4), xyxy, and their category ids.
        detections: table with the columns of `data.tables.DETECTIONS`, all of one split.
    """
    kept = detections.filter(pc.field("score") >= score_threshold).sort_by("image_id")
    image_ids, boxes, labels = kept["image_id"].to_numpy(), box_array(kept), kept["category_id"]
    labels = labels.to_numpy()
    hits = [np.zeros(0, dtype=bool)]
    for image_id, (true_boxes, true_labels) in truth.items():
        rows = slice(*np.searchsorted(image_ids, [image_id, image_id + 1]))
        matches = match_boxes(true_boxes, true_labels, boxes[rows], labels[rows], class_aware=True)
        hits.append(matches.best_iou >= iou_threshold)
    found = np.concatenate(hits)
    return float(found.mean()) if len(found) else 0.0


def coco_metrics(
    instances: Path, detections: pa.Table, image_ids: Sequence[int] | None = None
) -> CocoMetrics:
    """Evaluate detections against a COCO instances file; without any detection all is 0.

    Args:
        detections: table with the columns of `data.tables.DETECTIONS`, all of one split.
        image_ids: evaluate these images alone; None for all of the file.
    """
    if detections.num_rows == 0:
        return CocoMetrics(0, 0, 0, 0, 0, 0, 0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(instances))
        found = truth.loadRes(_results(detections))
        evaluation = COCOeval_faster(truth, found, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.asarray(evaluation.stats, dtype=np.float64)
    return CocoMetrics(*map(float, [*stats[:6], stats[8]]))


def _results(detections: pa.Table) -> np.ndarray:
    """Detections as COCO's (image_id, x, y, width, height, score, category_id) rows."""
    columns = [
        detections[name].to_numpy()[:, None] for name in ("image_id", "score", "category_id")
    ]
    boxes_xywh = xyxy_to_xywh(box_array(detections))
    return np.concatenate([columns[0], boxes_xywh, *columns[1:]], axis=1)
