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

from data.coco.image_sets import SyntheticSet
from data.vocabulary.tables import BOX_COLUMNS, Dataset, box_array
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
    """Images and the boxes that detections in them are held against, in pixels of the real images.

    Attributes:
        generated: of the synthetic images.
        real: of the real images whose layouts were drawn; each stands once.
        scales: by synthetic image the factors, horizontal and vertical, of its pixels to the real image's.
    """

    generated: CocoTruth
    real: CocoTruth
    scales: Mapping[int, np.ndarray]

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
        return ScoredImages(generated, real, scales)
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
