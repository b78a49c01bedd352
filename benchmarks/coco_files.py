"""COCO-scale files from a seed: annotations with realistic polygons.

Sizes, vertices per polygon and share of crowds follow COCO 2017: `python benchmarks/coco_files.py
instances.json` writes as much as `instances_train2017.json` holds.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

NUM_IMAGES, NUM_ANNOTATIONS = 118_287, 860_001
"""Of train2017."""

WIDTH, HEIGHT = 640, 480
_CATEGORY_IDS = np.setdiff1d(np.arange(1, 91), [12, 26, 29, 30, 45, 66, 68, 69, 71, 83])
_BLOCK = 20_000
_CROWD_SHARE = 0.012


@dataclass(frozen=True, slots=True)
class Objects:
    """Labelled boxes, in the order of their ids.

    Attributes:
        object_ids: 1, 2, …, int64 (num_objects,).
        image_ids: int64 (num_objects,).
        category_ids: COCO's 80 classes, int64 (num_objects,).
        boxes: xyxy in pixels, two decimals, float64 (num_objects, 4).
    """

    object_ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray


def make_objects(
    num_images: int = NUM_IMAGES, num_annotations: int = NUM_ANNOTATIONS, seed: int = 0
) -> Objects:
    """Draw labelled boxes: log-normal areas, classes with a long tail."""
    random = np.random.default_rng(seed)
    side = np.exp(random.normal(3.75, 0.95, num_annotations)).clip(4, HEIGHT - 8)
    aspect = np.exp(random.normal(0, 0.4, num_annotations))
    size = np.stack([side * aspect, side / aspect], axis=1).clip(4, [WIDTH - 8, HEIGHT - 8])
    corner = random.random((num_annotations, 2)) * ([WIDTH, HEIGHT] - size)
    weights = 1 / np.arange(2, len(_CATEGORY_IDS) + 2)
    return Objects(
        np.arange(1, num_annotations + 1),
        random.integers(1, num_images + 1, num_annotations),
        random.choice(_CATEGORY_IDS, num_annotations, p=weights / weights.sum()),
        np.concatenate([corner, corner + size], axis=1).round(2),
    )


def write_instances(
    path: Path,
    num_images: int = NUM_IMAGES,
    num_annotations: int = NUM_ANNOTATIONS,
    seed: int = 0,
) -> None:
    """Write a COCO instances file; the same arguments give the same bytes."""
    objects = make_objects(num_images, num_annotations, seed)
    with path.open("wb") as file:
        file.write(b'{"info": {"description": "made for a benchmark"}, "licenses": [], "images": [')
        file.write(msgspec.json.encode(list(_images(num_images)))[1:-1])
        file.write(b'], "annotations": [')
        for start in range(0, num_annotations, _BLOCK):
            records = _annotations(objects, slice(start, start + _BLOCK), seed)
            file.write(b", " * (start > 0) + msgspec.json.encode(records)[1:-1])
        categories = [
            {"supercategory": "any", "id": int(key), "name": f"class {key}"}
            for key in _CATEGORY_IDS
        ]
        file.write(b'], "categories": ' + msgspec.json.encode(categories) + b"}")


def _images(count: int) -> Iterator[dict[str, object]]:
    for image_id in range(1, count + 1):
        name = f"{image_id:012d}.jpg"
        yield {
            "license": 1 + image_id % 8,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm1.staticflickr.com/1/{image_id}_z.jpg",
            "id": image_id,
        }


def _annotations(objects: Objects, block: slice, seed: int) -> list[dict[str, object]]:
    random = np.random.default_rng([seed, block.start])
    boxes = objects.boxes[block]
    counts = np.exp(random.normal(2.8, 0.8, len(boxes))).astype(int).clip(4, 400)
    polygons = _polygons(boxes, counts, random)
    size = boxes[:, 2:] - boxes[:, :2]
    boxes_xywh = np.concatenate([boxes[:, :2], size], axis=1).round(2).tolist()
    crowd = random.random(len(boxes)) < _CROWD_SHARE
    return [
        {
            "segmentation": _run_lengths(box) if is_crowd else [polygon],
            "area": area,
            "iscrowd": int(is_crowd),
            "image_id": image_id,
            "bbox": box_xywh,
            "category_id": category_id,
            "id": object_id,
        }
        for polygon, area, is_crowd, image_id, box_xywh, category_id, object_id, box in zip(
            *polygons,
            crowd.tolist(),
            objects.image_ids[block].tolist(),
            boxes_xywh,
            objects.category_ids[block].tolist(),
            objects.object_ids[block].tolist(),
            boxes.round().astype(int).tolist(),
            strict=True,
        )
    ]


def _polygons(
    boxes: np.ndarray, counts: np.ndarray, random: np.random.Generator
) -> tuple[list[list[float]], list[float]]:
    """Star-shaped outlines inside the boxes: flat x, y lists of two decimals, and their areas."""
    owner = np.repeat(np.arange(len(boxes)), counts)
    starts = np.cumsum(counts) - counts
    step = np.arange(len(owner)) - starts[owner]
    angle = (step + 0.8 * random.random(len(owner))) / counts[owner] * 2 * np.pi
    radius = 0.6 + 0.4 * random.random(len(owner))
    unit = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    points = (centre[owner] + unit * half[owner]).round(2)
    following = np.arange(len(owner)) + 1
    following[starts + counts - 1] = starts
    cross = points[:, 0] * points[following, 1] - points[following, 0] * points[:, 1]
    areas = np.abs(np.add.reduceat(cross, starts)) / 2
    flat = points.reshape(-1).tolist()
    edges = [*(2 * starts).tolist(), len(flat)]
    outlines = [flat[a:b] for a, b in pairwise(edges)]
    return outlines, areas.round(4).tolist()


def _run_lengths(box: list[int]) -> dict[str, object]:
    """A filled box as uncompressed, column-major runs."""
    left, top, right, bottom = box
    tall, wide = max(bottom - top, 1), max(right - left, 1)
    runs = [left * HEIGHT + top, *([tall, HEIGHT - tall] * wide)]
    runs[-1] = HEIGHT * WIDTH - sum(runs[:-1])
    return {"counts": runs, "size": [HEIGHT, WIDTH]}


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--scale", type=float, default=1, help="1 is COCO's size")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_instances(
        given.path,
        max(int(NUM_IMAGES * given.scale), 1),
        max(int(NUM_ANNOTATIONS * given.scale), 1),
        given.seed,
    )


if __name__ == "__main__":
    main()
