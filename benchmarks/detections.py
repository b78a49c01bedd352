"""Boxes and detections of COCO's size and shape, drawn from a seed."""

from dataclasses import dataclass

import numpy as np

NUM_IMAGES = 118_287
NUM_BOXES = 860_001
NUM_DETECTIONS = 2_400_000
NUM_CLASSES = 80

_WIDTH, _HEIGHT = 640, 480
_MEDIAN_SIDE, _SIDE_SPREAD = 42.0, 1.17
"""A lognormal of these has COCO's shares of small, medium and large objects: 41, 34 and 24%."""

_RECALL = 0.7
_SPLIT_OF_THE_REST = 0.5
"""Of the detections that are no hit: share of duplicates and confusions; the others are background."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of many images, in the order of the images.

    Attributes:
        image_ids: int64 (num_boxes,), from 1.
        category_ids: int64 (num_boxes,), from 1.
        boxes: xyxy in pixels, float64 (num_boxes, 4).
        scores: float32 (num_boxes,); 1 for ground truth.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def ground_truth(rng: np.random.Generator, num_images: int, num_boxes: int) -> Boxes:
    """Draw labelled boxes: few in most images, many in some, coordinates to a hundredth of a pixel."""
    weights = rng.exponential(size=num_images)
    counts = rng.multinomial(num_boxes, weights / weights.sum())
    side = rng.lognormal(np.log(_MEDIAN_SIDE), _SIDE_SPREAD, num_boxes)
    aspect = rng.lognormal(0, 0.5, num_boxes)
    size = np.stack([side * np.sqrt(aspect), side / np.sqrt(aspect)], axis=1)
    size = np.clip(size, 2, [_WIDTH, _HEIGHT]).round(2)
    corner = (rng.random((num_boxes, 2)) * ([_WIDTH, _HEIGHT] - size)).round(2)
    return Boxes(
        image_ids=np.repeat(np.arange(1, num_images + 1), counts),
        category_ids=rng.integers(1, NUM_CLASSES + 1, num_boxes),
        boxes=np.concatenate([corner, corner + size], axis=1),
        scores=np.ones(num_boxes, np.float32),
    )


def detections(rng: np.random.Generator, truth: Boxes, num_images: int, count: int) -> Boxes:
    """Draw what a detector reports above a score of 0.05, best first within each image.

    Hits are close to their box and score high, duplicates and confusions are further off and of
    any class, background is anywhere; the latter two score low.
    """
    hit = np.flatnonzero(rng.random(len(truth.boxes)) < _RECALL)
    near = rng.integers(0, len(truth.boxes), int((count - len(hit)) * _SPLIT_OF_THE_REST))
    background = ground_truth(rng, num_images, count - len(hit) - len(near))
    source = np.concatenate([hit, near])
    jitter = np.repeat([0.05, 0.25], [len(hit), len(near)])[:, None] * _sides(truth.boxes[source])
    boxes = truth.boxes[source] + rng.normal(size=(len(source), 4)) * jitter
    boxes = np.concatenate([boxes, background.boxes])
    boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2] + 1)], axis=1)
    weak = rng.integers(1, NUM_CLASSES + 1, len(near))
    scores = np.concatenate([rng.beta(4, 2, len(hit)), rng.beta(1, 5, count - len(hit))])
    scores = (0.05 + 0.95 * scores).astype(np.float32)
    image_ids = np.concatenate([truth.image_ids[source], background.image_ids])
    category_ids = np.concatenate([truth.category_ids[hit], weak, background.category_ids])
    order = np.lexsort([-scores, image_ids])
    boxes = boxes.astype(np.float32).astype(np.float64)
    return Boxes(image_ids[order], category_ids[order], boxes[order], scores[order])


def _sides(boxes: np.ndarray) -> np.ndarray:
    """Width, height, width, height of each box."""
    return np.tile(boxes[:, 2:] - boxes[:, :2], 2)
