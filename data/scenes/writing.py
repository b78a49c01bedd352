"""Scenes on disk, in COCO-Thing-Stuff's layout: images, and their exact labels as COCO files."""

import json
from collections.abc import Iterator
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.progress import Progress, silent
from data.scenes.classes import FIRST_STUFF_ID, STUFF, THINGS
from data.scenes.scenes import RenderedScene, Scene, render_scene, sample_scene
from data.vocabulary.boxes import area, mask_to_box, xyxy_to_xywh
from data.vocabulary.masks import encode_mask
from data.workers import Workers

_UNLABELLED = 3
"""Number of the split; train, val and spare are 0 to 2."""

MIN_VISIBLE_PIXELS = 16
"""Of what has a label."""


def _labelled_scene(seed: int, split: int, size: int, index: int) -> tuple[Scene, RenderedScene]:
    """Draw until every object shows at least `MIN_VISIBLE_PIXELS` pixels."""
    rng = np.random.default_rng([seed, split, index])
    while True:
        scene = sample_scene(rng)
        rendered = render_scene(scene, size)
        visible = rendered.masks.sum(axis=(1, 2))
        if len(scene.objects) >= 3 and visible.min() >= MIN_VISIBLE_PIXELS:
            return scene, rendered


def thing_annotations(scene: Scene, rendered: RenderedScene) -> Iterator[dict[str, Any]]:
    """COCO annotations of the objects, all of which are seen, without ids."""
    for item, mask, full_area in zip(
        scene.objects, rendered.masks, rendered.full_areas, strict=True
    ):
        left, top, right, bottom = np.clip(item.box, 0, 1)
        inside = (right - left) * (bottom - top) / float(area(item.box))
        yield {
            "category_id": item.category + 1,
            "bbox": xyxy_to_xywh(mask_to_box(mask)).tolist(),
            "area": float(mask.sum()),
            "iscrowd": 0,
            "segmentation": encode_mask(mask),
            "difficulty": {
                "contrast": round(item.contrast, 3),
                "brightness": round(scene.brightness, 3),
                "truncation": round(1 - inside, 3),
                "occlusion": round(max(0.0, 1 - mask.sum() / (full_area * inside)), 3),
                "size": round(float(np.sqrt(mask.sum()) / mask.shape[0]), 3),
                "blur": round(item.blur, 3),
                "clutter": round(_litter_around(item.box, rendered), 3),
            },
        }


def _litter_around(box: np.ndarray, rendered: RenderedScene) -> float:
    """Share of litter among the background pixels of the box, widened by half of its sides."""
    size = len(rendered.litter)
    margin = np.tile(box[2:] - box[:2], 2) * [-0.25, -0.25, 0.25, 0.25]
    left, top, right, bottom = np.clip((box + margin) * size, 0, size).astype(int)
    background = ~rendered.masks[:, top:bottom, left:right].any(axis=0)
    litter = rendered.litter[top:bottom, left:right] & background
    return float(litter.sum() / max(background.sum(), 1))


def _stuff_annotations(rendered: RenderedScene) -> Iterator[dict[str, Any]]:
    background = ~rendered.masks.any(axis=0)
    for index in np.unique(rendered.stuff):
        mask = (rendered.stuff == index) & background
        if mask.sum() >= MIN_VISIBLE_PIXELS:
            yield {
                "category_id": FIRST_STUFF_ID + int(index),
                "bbox": xyxy_to_xywh(mask_to_box(mask)).tolist(),
                "area": float(mask.sum()),
                "iscrowd": 0,
                "segmentation": encode_mask(mask),
            }


def _write_scene(folder: Path, seed: int, split: int, size: int, index: int) -> dict[str, Any]:
    scene, rendered = _labelled_scene(seed, split, size, index)
    file_name = f"{index + 1:012d}.png"
    Image.fromarray(rendered.image).save(folder / file_name, compress_level=1)
    return {
        "image": {"id": index + 1, "file_name": file_name, "width": size, "height": size},
        "things": list(thing_annotations(scene, rendered)),
        "stuff": list(_stuff_annotations(rendered)),
    }


def write_scenes(
    root: Path,
    *,
    num_train: int,
    num_val: int,
    num_spare: int = 0,
    size: int = 64,
    seed: int = 0,
    num_workers: int = 1,
    on_progress: Progress = silent,
) -> None:
    """Write the data set in COCO's layout under `root`.

    Makes `train/`, `val/`, where asked for `spare/`, and `annotations/{instances,stuff}_{split}.json`.
    Image k of a split depends on (seed, split, k) alone, not on how many images or workers there are.

    Args:
        size: image side in pixels.
        on_progress: told of the images.
    """
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    counts = {"train": num_train, "val": num_val, **({"spare": num_spare} if num_spare else {})}
    done = 0
    for split, (name, count) in enumerate(counts.items()):
        records = []
        for record in _write_images(root / name, count, split, size, seed, num_workers):
            records.append(record)
            done += 1
            on_progress(done, sum(counts.values()), "images")
        _write_annotations(root / "annotations", name, records)


def write_unlabelled_scenes(
    folder: Path,
    count: int,
    *,
    size: int = 64,
    seed: int = 0,
    num_workers: int = 1,
    on_progress: Progress = silent,
) -> None:
    """Write images alone, of a split that `write_scenes` has not.

    Args:
        size: image side in pixels.
        on_progress: told of the images.
    """
    written = _write_images(folder, count, _UNLABELLED, size, seed, num_workers)
    for done, _ in enumerate(written, start=1):
        on_progress(done, count, "images")


def _write_images(
    folder: Path, count: int, split: int, size: int, seed: int, num_workers: int
) -> Iterator[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    with Workers(partial(_write_scene, folder, seed, split, size), num_workers) as workers:
        yield from workers.map(call, range(count))


def _write_annotations(folder: Path, split: str, records: list[dict[str, Any]]) -> None:
    categories = {
        "things": [{"id": i + 1, "name": name} for i, name in enumerate(THINGS)],
        "stuff": [{"id": FIRST_STUFF_ID + i, "name": name} for i, name in enumerate(STUFF)],
    }
    for kind, prefix in (("things", "instances"), ("stuff", "stuff")):
        annotations = [
            {"image_id": record["image"]["id"], **annotation}
            for record in records
            for annotation in record[kind]
        ]
        document = {
            "images": [record["image"] for record in records],
            "annotations": [{"id": i + 1, **item} for i, item in enumerate(annotations)],
            "categories": [{**item, "supercategory": kind} for item in categories[kind]],
        }
        (folder / f"{prefix}_{split}.json").write_text(json.dumps(document))
