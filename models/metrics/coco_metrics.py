"""COCO metrics of detections, through faster-coco-eval (equal to pycocotools, many times faster)."""

import contextlib
import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float64

from data.attributes.matching import class_groups, match_best
from data.vocabulary.boxes import xyxy_to_xywh
from data.vocabulary.tables import box_array


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """Those of COCO's twelve numbers that matter here; -1 where there is no object of that size.

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
        detections: table with the columns of `data.vocabulary.tables.DETECTIONS`, all of one split.
    """
    kept = detections.filter(pc.field("score") >= score_threshold)
    counts = [len(boxes) for boxes, _ in truth.values()]
    groups, found_groups = class_groups(
        np.repeat(list(truth), counts),
        np.concatenate([labels for _, labels in truth.values()]),
        kept["image_id"].to_numpy(),
        kept["category_id"].to_numpy(),
    )
    boxes = np.concatenate([boxes for boxes, _ in truth.values()])
    matches = match_best(boxes, groups, box_array(kept), found_groups)
    return float((matches.best_iou >= iou_threshold).mean())


def coco_metrics(
    instances: Path, detections: pa.Table, image_ids: Sequence[int] | None = None
) -> CocoMetrics:
    """Evaluate detections against a COCO instances file; without any detection all is 0.

    Args:
        detections: table with the columns of `data.vocabulary.tables.DETECTIONS`, all of one split.
        image_ids: evaluate these images alone; None for all of the file.
    """
    stats = coco_statistics(instances, detections, image_ids)
    return CocoMetrics(*map(float, [*stats[:6], stats[8]]))


def coco_statistics(
    instances: Path, detections: pa.Table, image_ids: Sequence[int] | None = None
) -> Float64[np.ndarray, " 12"]:
    """All twelve numbers of COCO's summary in its order; arguments as of `coco_metrics`."""
    if detections.num_rows == 0:
        return np.zeros(12)
    with contextlib.redirect_stdout(io.StringIO()), _no_garbage_collection():
        truth = COCO(str(instances))
        evaluation = COCOeval_faster(truth, _as_coco(detections, truth), "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats[:12], dtype=np.float64)


def _as_coco(detections: pa.Table, truth: COCO) -> COCO:
    """What `truth.loadRes` makes of detections, less the polygons that boxes have no use for."""
    boxes_xywh = xyxy_to_xywh(box_array(detections))
    areas = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    names = ("image_id", "category_id", "score")
    columns = [detections[name].to_numpy().tolist() for name in names]
    found = COCO()
    found.dataset = {key: truth.dataset[key] for key in ("images", "categories")}
    found.dataset["annotations"] = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "score": score,
            "bbox": box,
            "area": area,
            "iscrowd": 0,
        }
        for number, (image_id, category_id, score, box, area) in enumerate(
            zip(*columns, boxes_xywh.tolist(), areas.tolist(), strict=True), start=1
        )
    ]
    found.createIndex()
    return found


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A million small objects and no cycle among them: looking for one doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
