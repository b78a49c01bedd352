"""Boxes that are wrong on purpose: what errors of labels cost."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data.vocabulary.boxes import xywh_to_xyxy, xyxy_to_xywh


def write_noisy(instances: Path, noise: float, path: Path) -> None:
    """Copy a COCO instances file with every edge of every box moved, always in the same way.

    Edges move by normally distributed shares of the box's side and stay in the image; boxes whose edges
    would cross stay as they are.

    Args:
        noise: standard deviation, in shares of the side.
    """
    document: dict[str, Any] = msgspec.json.decode(instances.read_bytes())
    sizes = {item["id"]: (item["width"], item["height"]) for item in document["images"]}
    for item in document["annotations"]:
        box = xywh_to_xyxy(np.array(item["bbox"], dtype=np.float64))
        sides = np.tile(box[2:] - box[:2], 2)
        shifts = np.random.default_rng(item["id"] % 2**64).normal(scale=noise, size=4)
        moved = np.clip(box + shifts * sides, 0, np.tile(sizes[item["image_id"]], 2))
        if (moved[2:] > moved[:2]).all():
            item["bbox"] = xyxy_to_xywh(moved).tolist()
            item["area"] = float((moved[2:] - moved[:2]).prod())
    path.write_bytes(msgspec.json.encode(document))
