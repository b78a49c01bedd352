"""Detection scores of generated images ("YOLO Score"), and of the real ones of the same layouts.

Real and generated images are held against the same boxes, under two protocols (docs/method.md): `layout`,
what was asked of the generator, with all detections; and `lama`, all that is labelled in the real image, with
confident detections alone. Files of generated images may be of another size than the real ones: everything is
held against each other in pixels of the real images, so that COCO's sizes of objects mean the same in both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from data.coco.image_sets import SyntheticSet
from data.vocabulary.tables import BOX_COLUMNS, Dataset, box_array
from models.metrics.coco_metrics import (
    CocoMetrics,
    CocoTruth,
    annotations_by_image,
    coco_metrics,
    coco_results,
    read_truth,
    renumbered,
    truth_boxes,
    truths_found,
)
from models.metrics.distances import jackknife_intervals
from models.metrics.image_bootstrap import match_detections, weighted_precisions
from models.metrics.interval import Interval

ScoreProtocolName = Literal["layout", "lama"]

SCORE_THRESHOLDS: dict[ScoreProtocolName, float] = {"layout": 0.001, "lama": 0.25}
"""Detections count from this confidence on."""

_AT_50, _AT_75 = 0, 5
"""Places of IoU 0.50 and 0.75 among COCO's ten."""


@dataclass(frozen=True, slots=True)
class ScoredImages:
    """Images and the boxes that detections in them are held against, in pixels of the real images.

    Attributes:
        generated: of the synthetic images.
        real: of the real images whose layouts were drawn; each stands once.
        scales: by synthetic image the factors, horizontal and vertical, of its pixels to the real image's.
        sources: by synthetic image the real one whose layout it has.
    """

    generated: CocoTruth
    real: CocoTruth
    scales: Mapping[int, np.ndarray]
    sources: Mapping[int, int]

    def in_real_pixels(self, detections: pa.Table) -> pa.Table:
        """Bring detections in the synthetic images to pixels of the real ones.

        Args:
            detections: table with the columns of `data.vocabulary.tables.DETECTIONS`.
        """
        image_ids, rows = np.unique(detections["image_id"].to_numpy(), return_inverse=True)
        scales = np.array([self.scales[key] for key in image_ids.tolist()]).reshape(-1, 2)
        boxes = box_array(detections) * np.tile(scales, 2)[rows]
        for name, edges in zip(BOX_COLUMNS, boxes.T, strict=True):
            column = detections.schema.get_field_index(name)
            field = detections.schema.field(column)
            detections = detections.set_column(column, field, pa.array(edges, field.type))
        return detections


def scored_images(
    protocol: ScoreProtocolName, dataset: Dataset, synthetic: SyntheticSet
) -> ScoredImages:
    """The boxes of a protocol, for the generated images of a set and for the real ones of its layouts."""
    layouts = read_truth(synthetic.instances)
    sources = synthetic.source_of
    first = {row["image_id"] for row in synthetic.provenance.to_pylist() if row["repeat"] == 0}
    real = read_truth(dataset.instances_file("val"), set(sources.values()))
    scales = _scales(layouts, real, sources)
    if protocol == "lama":
        of_source = annotations_by_image(real)
        drawn = [
            {**item, "image_id": image_id}
            for image_id, source in sources.items()
            for item in of_source[source]
        ]
        generated = renumbered(layouts["images"], drawn, layouts["categories"])
        return ScoredImages(generated, real, scales, sources)
    asked_for = [_scaled(item, scales[item["image_id"]]) for item in layouts["annotations"]]
    of_real = [
        {**item, "image_id": sources[item["image_id"]]}
        for item in asked_for
        if item["image_id"] in first
    ]
    return ScoredImages(
        renumbered(layouts["images"], asked_for, layouts["categories"]),
        renumbered(real["images"], of_real, real["categories"]),
        scales,
        sources,
    )


def _scales(
    layouts: CocoTruth, real: CocoTruth, sources: Mapping[int, int]
) -> dict[int, np.ndarray]:
    drawn, sizes = (
        {item["id"]: np.array([item["width"], item["height"]]) for item in truth["images"]}
        for truth in (layouts, real)
    )
    return {image_id: sizes[sources[image_id]] / size for image_id, size in drawn.items()}


def _scaled(annotation: Mapping[str, Any], scale: np.ndarray) -> dict[str, Any]:
    """The annotation in pixels of an image of another size."""
    box = np.array(annotation["bbox"]) * np.tile(scale, 2)
    return {**annotation, "bbox": box.tolist(), "area": annotation["area"] * float(scale.prod())}


def detection_score(
    protocol: ScoreProtocolName, truth: CocoTruth, detections: pa.Table
) -> CocoMetrics:
    """COCO's metrics of detections under a protocol."""
    confident = pc.field("score") >= SCORE_THRESHOLDS[protocol]
    return coco_metrics(truth, detections.filter(confident))


@dataclass(frozen=True, slots=True)
class Hits:
    """How much of what images show was found.

    Attributes:
        image_ids: ascending.
        found: boxes of each image that a detection meets.
        boxes: of each image.
        clusters: what each belongs to, by its layout.
    """

    image_ids: list[int]
    found: Float[np.ndarray, " images"]
    boxes: Int[np.ndarray, " images"]
    clusters: Int[np.ndarray, " images"]

    @property
    def enough(self) -> bool:
        """Whether an interval can be told: there are two clusters with boxes."""
        return len(np.unique(self.clusters[self.boxes > 0])) > 1

    def recall(self, kept: Int[np.ndarray, " kept"]) -> float:
        """Share of the boxes of some images that was found."""
        return float(self.found[kept].sum() / max(self.boxes[kept].sum(), 1))


def count_hits(
    truth: CocoTruth,
    detections: pa.Table,
    clusters: Mapping[int, int],
    *,
    score_threshold: float,
    iou_threshold: float,
) -> Hits:
    """Count what was found in each image, as `detection_recall` does in all.

    Args:
        detections: in the truth's images.
        clusters: by image what it belongs to; such images count together.
    """
    boxes = dict(sorted(truth_boxes(truth).items()))
    counts = np.array([len(of_image) for of_image, _ in boxes.values()])
    found = truths_found(
        boxes, detections, score_threshold=score_threshold, iou_threshold=iou_threshold
    )
    return Hits(
        list(boxes),
        np.bincount(np.repeat(np.arange(len(boxes)), counts), found, len(boxes)),
        counts,
        np.array([clusters[key] for key in boxes]),
    )


def score_intervals(
    protocol: ScoreProtocolName, truth: CocoTruth, detections: pa.Table, hits: Hits
) -> dict[str, Interval]:
    """Intervals of `recall`, `map`, `map50` and `map75` over the layouts, by the jackknife.

    They say how far other layouts would change the scores of these two models, not how far other seeds
    would.

    Args:
        detections: in the truth's images.
        hits: of the same.

    Returns:
        None of them where there are less than two layouts with boxes.
    """
    if not hits.enough:
        return {}
    image_ids = hits.image_ids
    confident = detections.filter(pc.field("score") >= SCORE_THRESHOLDS[protocol])
    results = coco_results(confident, image_ids)
    matched = match_detections(truth, results, image_ids)

    def scores(kept: Int[np.ndarray, " kept"]) -> tuple[float, ...]:
        weights = np.bincount(kept, minlength=len(image_ids)).astype(np.float64)
        found = weighted_precisions(matched, weights)
        return (hits.recall(kept), float(found.mean()), *found[[_AT_50, _AT_75]].tolist())

    names = ("recall", "map", "map50", "map75")
    return dict(zip(names, jackknife_intervals(scores, hits.clusters), strict=True))


def recall_difference(of: Hits, versus: Hits) -> Interval | None:
    """Recall of one set of images less that of another of the same layouts, each left out of both at once.

    None where there are less than two layouts with boxes.
    """
    if not (of.enough and versus.enough):
        return None
    count = len(of.image_ids)

    def difference(kept: Int[np.ndarray, " kept"]) -> tuple[float]:
        return (of.recall(kept[kept < count]) - versus.recall(kept[kept >= count] - count),)

    return jackknife_intervals(difference, np.concatenate([of.clusters, versus.clusters]))[0]
