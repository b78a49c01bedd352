"""COCO metrics of detections, through faster-coco-eval (equal to pycocotools, many times faster)."""

import contextlib
import gc
import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool, Float, Float64, Int

from data.attributes.matching import class_groups, match_best
from data.vocabulary.boxes import xywh_to_xyxy, xyxy_to_xywh
from data.vocabulary.tables import box_array

_NUMBERS = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "mar100")

CocoTruth = dict[str, Any]
"""A COCO instances file's content: `images`, `annotations` with ids from 1, `categories`."""


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """Those of COCO's twelve numbers that matter here; None where there is no such object.

    Attributes:
        map: average precision at IoU 0.50:0.95.
        map50: at IoU 0.50.
        map75: at IoU 0.75.
        map_small: of objects under 32² pixels.
        map_medium: of objects from 32² to 96² pixels.
        map_large: of objects over 96² pixels.
        mar100: average recall with at most 100 detections an image.
        classes: `map` of single classes by name.
    """

    map: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    mar100: float | None
    classes: dict[str, float | None]

    def as_row(self) -> dict[str, float | None]:
        """The numbers of all classes together, as a table row."""
        row = asdict(self)
        del row["classes"]
        return row


def read_truth(instances: Path, image_ids: Collection[int] | None = None) -> CocoTruth:
    """Read the boxes that detections are evaluated against.

    Annotations are numbered from 1: evaluators in the style of pycocotools take a match with an
    annotation of id 0 for none.

    Args:
        image_ids: these images alone; None for all of the file.
    """
    document = msgspec.json.decode(instances.read_bytes())
    wanted = None if image_ids is None else set(image_ids)
    return renumbered(
        [item for item in document["images"] if wanted is None or item["id"] in wanted],
        [a for a in document["annotations"] if wanted is None or a["image_id"] in wanted],
        document["categories"],
    )


def renumbered(
    images: list[dict[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: list[dict[str, Any]],
) -> CocoTruth:
    """Put a truth together, its annotations numbered from 1."""
    numbered = [{**item, "id": number} for number, item in enumerate(annotations, start=1)]
    return {"images": images, "annotations": numbered, "categories": categories}


def annotations_by_image(truth: CocoTruth) -> dict[int, list[dict[str, Any]]]:
    """The annotations of every image, crowds too; none for an image without."""
    found: dict[int, list[dict[str, Any]]] = {item["id"]: [] for item in truth["images"]}
    for item in truth["annotations"]:
        found[item["image_id"]].append(item)
    return found


def truth_boxes(truth: CocoTruth) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Boxes by image, crowds left out: xyxy in pixels (num_boxes, 4), and their category ids."""
    found = {
        image_id: [item for item in items if not item.get("iscrowd")]
        for image_id, items in annotations_by_image(truth).items()
    }
    return {
        image_id: (
            xywh_to_xyxy(np.array([item["bbox"] for item in items], np.float64).reshape(-1, 4)),
            np.array([item["category_id"] for item in items], np.int64),
        )
        for image_id, items in found.items()
    }


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
    limits = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    return float(truths_found(truth, detections, **limits).mean())


def truths_found(
    truth: Mapping[int, tuple[np.ndarray, np.ndarray]],
    detections: pa.Table,
    *,
    score_threshold: float,
    iou_threshold: float,
) -> Bool[np.ndarray, " num_boxes"]:
    """Which true boxes `detection_recall` counts, image by image in the order of the truth."""
    return boxes_found(
        np.concatenate([boxes for boxes, _ in truth.values()]),
        np.repeat(list(truth), [len(boxes) for boxes, _ in truth.values()]),
        np.concatenate([labels for _, labels in truth.values()]),
        detections,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )


def boxes_found(
    boxes: Float[np.ndarray, "num_boxes 4"],
    image_ids: Int[np.ndarray, " num_boxes"],
    category_ids: Int[np.ndarray, " num_boxes"],
    detections: pa.Table,
    *,
    score_threshold: float,
    iou_threshold: float,
) -> Bool[np.ndarray, " num_boxes"]:
    """Which boxes have a detection of their class, score and IoU at the limits.

    Args:
        boxes: xyxy.
        image_ids: of each box.
        category_ids: likewise.
        detections: as of `detection_recall`.
    """
    kept = detections.filter(pc.field("score") >= score_threshold)
    groups, found_groups = class_groups(
        image_ids, category_ids, kept["image_id"].to_numpy(), kept["category_id"].to_numpy()
    )
    matches = match_best(boxes, groups, box_array(kept), found_groups)
    return matches.best_iou >= iou_threshold


def coco_metrics(truth: CocoTruth, detections: pa.Table) -> CocoMetrics:
    """Evaluate detections; without any detection all that is not None is 0.

    Args:
        detections: table with the columns of `data.vocabulary.tables.DETECTIONS`; those of images
            that the truth does not have are not looked at.
    """
    evaluation = _evaluated(truth, detections)
    stats = [float(value) if value >= 0 else None for value in evaluation.stats[:12]]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # all sizes, 100 detections
    names = {item["id"]: item["name"] for item in truth["categories"]}
    classes = {
        names[key]: float(values[values > -1].mean()) if (values > -1).any() else None
        for key, values in zip(evaluation.params.catIds, precision.transpose(2, 0, 1), strict=True)
    }
    numbers = dict(zip(_NUMBERS, [*stats[:6], stats[8]], strict=True))
    return CocoMetrics(**numbers, classes=classes)


def coco_statistics(truth: CocoTruth, detections: pa.Table) -> Float64[np.ndarray, " 12"]:
    """All twelve numbers of COCO's summary in its order; -1 where there is no such object."""
    return np.asarray(_evaluated(truth, detections).stats[:12], dtype=np.float64)


def _evaluated(truth: CocoTruth, detections: pa.Table) -> COCOeval_faster:
    with contextlib.redirect_stdout(io.StringIO()), _no_garbage_collection():
        known = _index(truth["images"], truth["categories"], truth["annotations"])
        results = coco_results(detections, {item["id"] for item in truth["images"]})
        found = _index(truth["images"], truth["categories"], results)
        evaluation = COCOeval_faster(known, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _index(images: Any, categories: Any, annotations: Any) -> COCO:
    index = COCO()
    index.dataset = {"images": images, "categories": categories, "annotations": annotations}
    index.createIndex()
    return index


def coco_results(detections: pa.Table, image_ids: Collection[int]) -> list[dict[str, Any]]:
    """Detections in some images as evaluators want them: COCO results with id and area."""
    ids = pa.array(sorted(image_ids), pa.int64())
    kept = detections.filter(pc.is_in(detections["image_id"], ids))
    boxes_xywh = xyxy_to_xywh(box_array(kept))
    areas = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    names = ("image_id", "category_id", "score")
    columns = [kept[name].to_numpy().tolist() for name in names]
    return [
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
