"""Attributes of COCO's boxes, against a loop of `pycocotools.mask.iou` over the images.

`python benchmarks/attributes.py [--scale 0.1]`. Every contestant gets data that lies in memory in its
own form (tables, COCO dicts by image, arrays by image), drops detections of low score, and finds
best IoU, matched detection's score and class, and easy or hard of every box.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
from detections import NUM_BOXES, NUM_DETECTIONS, NUM_IMAGES, Boxes, detections, ground_truth
from pycocotools import mask as coco_mask
from timing import best_seconds, scale_option, verdict

from data.attributes.labelling import extract_attributes
from data.attributes.options import AttributeConfig
from data.vocabulary.boxes import xyxy_to_coco
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS, Dataset

GOALS = {"COCO dicts": 15.0, "pre-sliced arrays": 5.0}
CONFIG = AttributeConfig()


@dataclass(frozen=True, slots=True)
class Labels:
    """What every contestant finds, per box in the order of the images."""

    best_iou: np.ndarray
    score: np.ndarray
    category_id: np.ndarray
    easy: np.ndarray


def tables(truth: Boxes, found: Boxes) -> tuple[Dataset, pa.Table]:
    """The contest's data as the pipeline's tables."""
    rows = len(truth.boxes)
    columns = {
        "split": pa.array(["train"]).take(pa.array(np.zeros(rows, np.int32))),
        "object_id": np.arange(rows),
        "image_id": truth.image_ids,
        "category_id": truth.category_ids,
        "is_thing": np.ones(rows, bool),
        "is_crowd": np.zeros(rows, bool),
        "area": np.prod(truth.boxes[:, 2:] - truth.boxes[:, :2], axis=1),
    }
    objects = pa.table(columns | _edges(truth, np.float64))
    table = pa.table(
        {
            "split": pa.array(["train"]).take(pa.array(np.zeros(len(found.boxes), np.int32))),
            "image_id": found.image_ids,
            "category_id": found.category_ids,
            "score": found.scores,
            "detector": pa.array(["d"]).take(pa.array(np.zeros(len(found.boxes), np.int32))),
        }
        | _edges(found, np.float32)
    ).select(DETECTIONS.names)
    return cast("Dataset", SimpleNamespace(objects=objects)), table


def _edges(boxes: Boxes, kind: type) -> dict[str, np.ndarray]:
    return {name: boxes.boxes[:, i].astype(kind) for i, name in enumerate(BOX_COLUMNS)}


def by_image(boxes: Boxes, num_images: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes (x, y, w, h), scores and classes of every image."""
    cuts = np.searchsorted(boxes.image_ids, np.arange(2, num_images + 1))
    parts = (np.ascontiguousarray(xyxy_to_coco(boxes.boxes)), boxes.scores, boxes.category_ids)
    return list(zip(*(np.split(part, cuts) for part in parts), strict=True))


def as_dicts(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[list[dict[str, Any]]]:
    """The same as COCO's annotations or results."""
    ids = count(1)
    return [
        [
            {"id": next(ids), "bbox": box, "score": score, "category_id": category_id}
            for box, score, category_id in zip(*(part.tolist() for part in image), strict=True)
        ]
        for image in images
    ]


def loop_over_dicts(
    truth: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """One `iou` call per image on what COCO() and loadRes() hold; a row per box, as in our table."""
    rows = []
    for labelled, detected in zip(truth, found, strict=True):
        kept = [item for item in detected if item["score"] > CONFIG.score_threshold]
        overlaps = coco_mask.iou(
            [item["bbox"] for item in kept],
            [item["bbox"] for item in labelled],
            [0] * len(labelled),
        )
        best = overlaps.argmax(axis=0).tolist() if kept and labelled else [-1] * len(labelled)
        for column, (box, row) in enumerate(zip(labelled, best, strict=True)):
            overlap = float(overlaps[row, column]) if row >= 0 else 0.0
            match = kept[row] if overlap > 0 else {"score": 0, "category_id": 0}
            rows.append(
                {
                    "object_id": box["id"],
                    "category_id": box["category_id"],
                    "best_iou": overlap,
                    "matched_score": match["score"],
                    "matched_category_id": match["category_id"],
                    "attribute": "easy" if overlap > CONFIG.iou_threshold else "hard",
                }
            )
    return rows


def from_rows(rows: list[dict[str, Any]]) -> Labels:
    """Rows in the contest's form."""
    return Labels(
        np.array([row["best_iou"] for row in rows]),
        np.array([row["matched_score"] for row in rows], np.float32),
        np.array([row["matched_category_id"] for row in rows]),
        np.array([row["attribute"] == "easy" for row in rows]),
    )


def loop_over_arrays(
    truth: list[tuple[np.ndarray, ...]], found: list[tuple[np.ndarray, ...]]
) -> Labels:
    """One `iou` call per image on arrays that were sliced by image beforehand."""
    best_iou, scores, category_ids = [], [], []
    for (boxes, *_), (detected, score, category_id) in zip(truth, found, strict=True):
        kept = score > CONFIG.score_threshold
        if not kept.any():
            best_iou.append(np.zeros(len(boxes)))
            scores.append(np.zeros(len(boxes), np.float32))
            category_ids.append(np.zeros(len(boxes), np.int64))
        elif len(boxes):
            overlaps = coco_mask.iou(detected[kept], boxes, [0] * len(boxes))
            best = overlaps.argmax(axis=0)
            best_iou.append(overlaps[best, np.arange(len(boxes))])
            scores.append(score[kept][best])
            category_ids.append(category_id[kept][best])
    return _labels(*map(np.concatenate, (best_iou, scores, category_ids)))


def _labels(best_iou: np.ndarray, score: np.ndarray, category_id: np.ndarray) -> Labels:
    found = best_iou > 0
    return Labels(
        best_iou,
        np.where(found, score, 0).astype(np.float32),
        np.where(found, category_id, 0),
        best_iou > CONFIG.iou_threshold,
    )


def from_table(table: pa.Table) -> Labels:
    """The pipeline's answer in the contest's form."""
    return Labels(
        table["best_iou"].to_numpy(),
        table["matched_score"].fill_null(0).to_numpy(),
        table["matched_category_id"].fill_null(0).to_numpy(),
        np.asarray(table["attribute"]) == "easy",
    )


def differences(one: Labels, other: Labels) -> list[str]:
    """Fields that are not equal to the last bit."""
    return [
        name
        for name in Labels.__slots__
        if not np.array_equal(getattr(one, name), getattr(other, name))
    ]


def main() -> int:
    """Check equality, then time."""
    scale = scale_option(__doc__)
    num_images = int(NUM_IMAGES * scale)
    rng = np.random.default_rng(0)
    truth = ground_truth(rng, num_images, int(NUM_BOXES * scale))
    found = detections(rng, truth, num_images, int(NUM_DETECTIONS * scale))
    dataset, table = tables(truth, found)
    sliced = by_image(truth, num_images), by_image(found, num_images)
    dicts = as_dicts(sliced[0]), as_dicts(sliced[1])
    cores = len(os.sched_getaffinity(0))
    share = float((found.scores > CONFIG.score_threshold).mean())
    print(
        f"{num_images} images, {len(truth.boxes)} boxes, {len(found.boxes)} detections, "
        f"{share:.0%} of them above γ = {CONFIG.score_threshold}"
    )
    contestants: dict[str, Callable[[], Any]] = {
        "detdiffusion": lambda: extract_attributes(dataset, table, "train", CONFIG, cores),
        "COCO dicts": lambda: loop_over_dicts(*dicts),
        "pre-sliced arrays": lambda: loop_over_arrays(*sliced),
    }
    ours = from_table(contestants["detdiffusion"]())
    theirs = {
        "COCO dicts": from_rows(contestants["COCO dicts"]()),
        "pre-sliced arrays": contestants["pre-sliced arrays"](),
    }
    for name, labels in theirs.items():
        unequal = differences(ours, labels)
        if unequal:
            print(f"FAIL attributes: {', '.join(unequal)} differ from the loop over {name}")
            return 1
    seconds = best_seconds(contestants, rounds=5)
    ratios = {name: (seconds[name] / seconds["detdiffusion"], goal) for name, goal in GOALS.items()}
    return verdict("attributes", ratios, "labels, matches and IoUs identical to the last bit")


if __name__ == "__main__":
    sys.exit(main())
