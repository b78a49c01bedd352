"""Detections of any other framework: COCO results files."""

import codecs
from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from data.artifacts.digests import file_digest
from data.errors import InvalidDataset
from data.vocabulary.boxes import xywh_to_xyxy
from data.vocabulary.splits import Split
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS, Dataset

_SHOWN = 5
"""Offenders named in a message."""


class CocoResult(msgspec.Struct, gc=False):
    """An entry of a results file."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def read_results(
    path: Path, dataset: Dataset, split: Split, known_ids: Collection[int]
) -> pa.Table:
    """Read a COCO results file, a JSON list of boxes with scores, as a table `DETECTIONS`.

    Args:
        dataset: whose categories there may be.
        split: for the table.
        known_ids: of the images that there may be.

    Raises:
        InvalidDataset: the file is missing or of another structure; an image is not among those, a
            category not of the data set; a box is not finite or has a negative side; a score is
            outside [0, 1]. The message names the first offenders.
    """
    rows = _decode(path)
    image_ids = np.array([row.image_id for row in rows], np.int64)
    category_ids = np.array([row.category_id for row in rows], np.int64)
    boxes_xywh = np.array([row.bbox for row in rows], np.float64).reshape(-1, 4)
    scores = np.array([row.score for row in rows], np.float64)
    categories = [item.category_id for item in dataset.categories]
    bad_box = ~np.isfinite(boxes_xywh).all(axis=1) | (boxes_xywh[:, 2:] < 0).any(axis=1)
    for reason, values, wrong in (
        (f"images that split {split} does not have", image_ids, ~np.isin(image_ids, list(known_ids))),
        ("categories that the data set does not have", category_ids,
         ~np.isin(category_ids, categories)),
        ("boxes that are not finite or have a negative side", boxes_xywh, bad_box),
        ("scores outside of [0, 1]", scores, ~((scores >= 0) & (scores <= 1))),
    ):  # fmt: skip
        _refuse(path, reason, values, np.flatnonzero(wrong))
    boxes = xywh_to_xyxy(boxes_xywh)
    return pa.table(
        {
            "split": [split] * len(rows),
            "image_id": image_ids,
            "category_id": category_ids,
            "score": scores.astype(np.float32),
            **{name: boxes[:, i].astype(np.float32) for i, name in enumerate(BOX_COLUMNS)},
            "detector": [f"results/{path.name}@{file_digest(path)[:12]}"] * len(rows),
        },
        schema=DETECTIONS,
    )


def _decode(path: Path) -> list[CocoResult]:
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return msgspec.json.decode(content, type=list[CocoResult], strict=False)
    except OSError as error:
        raise InvalidDataset(
            f"{path}: {error.strerror}; give the path of a COCO results JSON"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidDataset(f"{path} is not a COCO results file: {error}") from error


def _refuse(path: Path, reason: str, values: np.ndarray, rows: np.ndarray) -> None:
    if len(rows):
        first = ", ".join(f"[{row}]: {values[row].tolist()}" for row in rows[:_SHOWN])
        raise InvalidDataset(f"{path}: {len(rows)} entries with {reason}; the first are {first}")
