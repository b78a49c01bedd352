"""Detection scores of generated images ("YOLO Score"), and of the real ones of the same layouts.

Real and generated images are held against the same boxes, under two protocols (docs/method.md): `layout`,
what was asked of the generator, with all detections; and `lama`, all that is labelled in the real image, with
confident detections alone.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from data.coco.image_sets import SyntheticSet
from data.vocabulary.tables import Dataset
from models.metrics.coco_metrics import (
    CocoMetrics,
    CocoTruth,
    annotations_by_image,
    coco_metrics,
    read_truth,
    renumbered,
)

ScoreProtocolName = Literal["layout", "lama"]

SCORE_THRESHOLDS: dict[ScoreProtocolName, float] = {"layout": 0.001, "lama": 0.25}
"""Detections count from this confidence on."""


@dataclass(frozen=True, slots=True)
class ScoredImages:
    """Images and the boxes that detections in them are held against.

    Attributes:
        generated: of the synthetic images.
        real: of the real images whose layouts were drawn; each stands once.
    """

    generated: CocoTruth
    real: CocoTruth


def scored_images(
    protocol: ScoreProtocolName, dataset: Dataset, synthetic: SyntheticSet
) -> ScoredImages:
    """The boxes of a protocol, for the generated images of a set and for the real ones of its layouts."""
    layouts = read_truth(synthetic.instances)
    rows = synthetic.provenance.to_pylist()
    sources = {row["image_id"]: row["source_image_id"] for row in rows}
    first = {row["image_id"] for row in rows if row["repeat"] == 0}
    real = read_truth(dataset.instances_file("val"), set(sources.values()))
    if protocol == "lama":
        of_source = annotations_by_image(real)
        drawn = [
            {**item, "image_id": image_id}
            for image_id, source in sources.items()
            for item in of_source[source]
        ]
        return ScoredImages(renumbered(layouts["images"], drawn, layouts["categories"]), real)
    asked_for = [
        {**item, "image_id": sources[item["image_id"]]}
        for item in layouts["annotations"]
        if item["image_id"] in first
    ]
    return ScoredImages(layouts, renumbered(real["images"], asked_for, real["categories"]))


def detection_score(
    protocol: ScoreProtocolName, truth: CocoTruth, detections: pa.Table
) -> CocoMetrics:
    """COCO's metrics of detections under a protocol."""
    confident = pc.field("score") >= SCORE_THRESHOLDS[protocol]
    return coco_metrics(truth, detections.filter(confident))
