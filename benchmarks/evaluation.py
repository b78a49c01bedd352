"""COCO's twelve numbers through `models.evaluation`, against pycocotools.

`python benchmarks/evaluation.py [--scale 0.2]`. Both read the instances file; pycocotools gets the
detections as the list of dicts that a results file holds.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from detections import NUM_CLASSES, Boxes, detections, ground_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timing import best_seconds, scale_option, verdict

from data.vocabulary.boxes import xyxy_to_xywh
from data.vocabulary.tables import BOX_COLUMNS
from models.metrics.coco_metrics import coco_statistics, read_truth

GOAL = 8.0
TOLERANCE = 1e-9
NUM_IMAGES, NUM_BOXES, NUM_DETECTIONS = 5_000, 36_781, 180_000
"""Of COCO's validation images."""


def write_instances(path: Path, truth: Boxes, num_images: int) -> None:
    """Write the labelled boxes as a COCO file."""
    boxes_xywh = xyxy_to_xywh(truth.boxes)
    rows = zip(
        truth.image_ids.tolist(), truth.category_ids.tolist(), boxes_xywh.tolist(), strict=True
    )
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for number, (image_id, category_id, box) in enumerate(rows, start=1)
    ]
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480}
        for number in range(1, num_images + 1)
    ]
    categories = [{"id": number, "name": str(number)} for number in range(1, NUM_CLASSES + 1)]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def as_table(found: Boxes) -> pa.Table:
    """Detections as the pipeline keeps them."""
    columns = {
        "image_id": found.image_ids,
        "category_id": found.category_ids,
        "score": found.scores,
    }
    edges = {name: found.boxes[:, i].astype(np.float32) for i, name in enumerate(BOX_COLUMNS)}
    return pa.table(columns | edges)


def as_results(found: Boxes) -> list[dict[str, Any]]:
    """The same detections as COCO results."""
    parts = (found.image_ids, found.category_ids, found.scores, xyxy_to_xywh(found.boxes))
    names = ("image_id", "category_id", "score", "bbox")
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*(part.tolist() for part in parts), strict=True)
    ]


def oracle(instances: Path, results: list[dict[str, Any]]) -> np.ndarray:
    """The twelve numbers by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(instances))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def main() -> int:
    """Check equality, then time."""
    scale = scale_option(__doc__)
    num_images = int(NUM_IMAGES * scale)
    rng = np.random.default_rng(0)
    truth = ground_truth(rng, num_images, int(NUM_BOXES * scale))
    found = detections(rng, truth, num_images, int(NUM_DETECTIONS * scale))
    table, results = as_table(found), as_results(found)
    print(f"{num_images} images, {len(truth.boxes)} boxes, {len(found.boxes)} detections")
    with tempfile.TemporaryDirectory() as folder:
        instances = Path(folder) / "instances.json"
        write_instances(instances, truth, num_images)
        contestants: dict[str, Callable[[], Any]] = {
            "detdiffusion": lambda: coco_statistics(read_truth(instances), table),
            "pycocotools": lambda: oracle(instances, results),
        }
        ours, theirs = (run() for run in contestants.values())
        print("  ".join(f"{value:.4f}" for value in ours))
        largest = float(np.abs(ours - theirs).max())
        if not largest <= TOLERANCE:
            print(f"FAIL evaluation: the numbers differ by {largest:g}: {theirs}")
            return 1
        seconds = best_seconds(contestants, rounds=1)
    ratio = seconds["pycocotools"] / seconds["detdiffusion"]
    equality = f"12 numbers equal to {TOLERANCE:g} (largest difference {largest:.1e})"
    return verdict("evaluation", {"pycocotools": (ratio, GOAL)}, equality)


if __name__ == "__main__":
    sys.exit(main())
