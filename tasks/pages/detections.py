"""Detections as an artifact: their table, what they are worth, their card."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.coco.image_sets import ImageSet
from data.vocabulary.splits import Split
from data.vocabulary.tables import write_table
from models.metrics.coco_metrics import coco_metrics, read_truth
from models.metrics.tiles import join_tiles
from tasks.pages.cards import markdown_table, write_card

DETECTIONS_NAME = "detections.parquet"
COCO_METRICS_NAME = "metrics.json"

_THRESHOLDS = (0.05, 0.3, 0.5, 0.7)


def publish_detections(
    out: Path, found: pa.Table, images: ImageSet, split: Split
) -> dict[str, Any]:
    """Write the artifact; returns its summary.

    Args:
        found: table with schema `DETECTIONS`.
        images: that were looked at. Those of the split `val` have COCO's metrics, in `metrics.json` too; if
            they are tiles, of the whole images.
    """
    table = found.sort_by([("image_id", "ascending"), ("score", "descending")])
    write_table(table, out / DETECTIONS_NAME)
    scores = table["score"].to_numpy()
    counts = [
        {"score at least": limit, "detections": int(np.count_nonzero(scores >= limit))}
        for limit in _THRESHOLDS
    ]
    detectors = ", ".join(sorted(pc.unique(table["detector"]).to_pylist())) or "—"
    facts = f"{table.num_rows} detections in {len(images.images)} images by: {detectors}"
    if split != "val":
        write_card(out, "Detections", facts, markdown_table(counts))
        return {}
    if images.whole:
        truth, judged = read_truth(images.whole.instances), join_tiles(table, images.whole.tiles)
    else:
        truth, judged = read_truth(images.instances, images.image_ids), table
    found_metrics = coco_metrics(truth, judged)
    metrics = found_metrics.as_row()
    (out / COCO_METRICS_NAME).write_text(json.dumps({**metrics, "classes": found_metrics.classes}))
    write_card(
        out,
        "Detections",
        facts,
        markdown_table(counts),
        f"## COCO metrics of {images.whole or 'these images'}",
        markdown_table([metrics]),
        "## AP by class",
        markdown_table([{"class": k, "AP": v} for k, v in found_metrics.classes.items()]),
    )
    return {"metrics": metrics}
