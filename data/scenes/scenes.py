"""Scenes: an embedded, procedural detection data set in COCO-Thing-Stuff's layout on disk.

Small outdoor pictures with eight thing classes told apart by shape and texture on four kinds of
stuff, exact masks, and graded sources of difficulty (faded, dark, blurred, occluded, truncated, small,
in clutter), each recorded per object under the extra annotation key `difficulty`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from operator import call
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from data.progress import Progress, silent
from data.scenes.classes import FIRST_STUFF_ID, STUFF, THINGS
from data.scenes.sprites import ASPECTS, SPRITES, rgb
from data.vocabulary.boxes import area, mask_to_box, overlap, xyxy_to_xywh
from data.vocabulary.masks import encode_mask
from data.workers import Workers

_SUPERSAMPLING = 3
_PLACEMENT_ATTEMPTS = 40
_UNLABELLED = 3
"""Number of the split; train, val and spare are 0 to 2."""

MIN_VISIBLE_PIXELS = 16
"""Of what has a label."""

_PLAIN = 0.9
"""Contrast and brightness from which on nothing is faded or dark."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing before rendering.

    Attributes:
        category: index into `THINGS`.
        box: full extent, xyxy in fractions of the image side; may reach outside the image.
        contrast: opacity in (0, 1]; low values fade the object into what is behind it.
        blur: standard deviation of its defocus as a fraction of the image side; 0 is sharp.
        tint: colour jitter per RGB channel, a factor around 1.
    """

    category: int
    box: np.ndarray
    contrast: float
    blur: float
    tint: np.ndarray

    @property
    def is_plain(self) -> bool:
        """Whether it is neither faded nor blurred."""
        return self.contrast >= _PLAIN and self.blur == 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before rendering: things back to front, and how the ground and the light look.

    Attributes:
        objects: painter's order.
        horizon: height of the horizon as a fraction of the image, from the top.
        shore: where the second ground begins, same unit; 1 if there is one ground only.
        grounds: indices into `STUFF` of the far and the near ground.
        hue: sky colour, 0 (noon) to 1 (dusk).
        phase: phase of waves and ripples in radians.
        brightness: exposure factor in (0, 1].
        litter: small unlabelled spots on the ground, behind all things: (num_spots, 6) with centre
            x, y and radius in fractions of the image side, then RGB.
    """

    objects: tuple[SceneObject, ...]
    horizon: float
    shore: float
    grounds: tuple[int, int]
    hue: float
    phase: float
    brightness: float
    litter: np.ndarray

    @property
    def is_dark(self) -> bool:
        """Whether darkness hides what is in it."""
        return self.brightness < _PLAIN


@dataclass(frozen=True, slots=True)
class RenderedScene:
    """Pixels and exact labels.

    Attributes:
        image: uint8, (size, size, 3).
        masks: visible part of each object, bool, (num_objects, size, size).
        full_areas: unoccluded, untruncated area of each object in pixels.
        stuff: index into `STUFF` of every pixel's background, (size, size).
        litter: pixels with a spot of litter, seen or hidden, bool (size, size).
    """

    image: np.ndarray
    masks: np.ndarray
    full_areas: np.ndarray
    stuff: np.ndarray
    litter: np.ndarray


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: 3 to 8 things on one or two grounds under a sky."""
    horizon = rng.uniform(0.25, 0.5)
    has_shore = rng.random() < 0.5
    grounds = (2, int(rng.choice([1, 3]))) if has_shore else (int(rng.integers(1, 4)),) * 2
    return Scene(
        objects=_sample_objects(rng, num_objects=int(rng.integers(3, 9))),
        horizon=horizon,
        shore=rng.uniform(horizon + 0.15, 0.8) if has_shore else 1.0,
        grounds=grounds,
        hue=rng.random(),
        phase=rng.uniform(0, 2 * np.pi),
        brightness=rng.uniform(0.35, 0.6) if rng.random() < 0.15 else rng.uniform(_PLAIN, 1.0),
        litter=sample_litter(rng, horizon, int(rng.integers(30, 70)) if rng.random() < 0.2 else 0),
    )


def sample_litter(rng: np.random.Generator, horizon: float, num_spots: int) -> np.ndarray:
    """Draw spots below the horizon, as `Scene` has them."""
    low, high = (0.0, horizon, 0.012, 20, 20, 20), (1.0, 1.0, 0.04, 250, 250, 250)
    return rng.uniform(low, high, size=(num_spots, 6))


def _sample_objects(rng: np.random.Generator, num_objects: int) -> tuple[SceneObject, ...]:
    objects: list[SceneObject] = []
    for _ in range(num_objects * _PLACEMENT_ATTEMPTS):
        if len(objects) == num_objects:
            break
        candidate = sample_object(rng)
        allowed_overlap = 0.5 if rng.random() < 0.2 else 0.05
        boxes = np.array([placed.box for placed in objects]).reshape(-1, 4)
        if overlap(candidate.box, boxes).max(initial=0.0) <= allowed_overlap:
            objects.append(candidate)
    return tuple(sorted(objects, key=lambda item: float(item.box[3])))


def sample_object(rng: np.random.Generator) -> SceneObject:
    """Draw a thing: its class, its place and how it looks."""
    category = int(rng.integers(len(THINGS)))
    side = rng.uniform(0.2, 0.46)
    aspect = np.sqrt(ASPECTS[category] * rng.uniform(0.87, 1.15))
    width, height = side * aspect, side / aspect
    overhang = 0.35 if rng.random() < 0.12 else 0.0
    left = rng.uniform(-overhang * width, 1 - width + overhang * width)
    top = rng.uniform(0.03, 1 - height + overhang * height)
    return SceneObject(
        category=category,
        box=np.array([left, top, left + width, top + height]),
        contrast=rng.uniform(0.08, 0.4) if rng.random() < 0.45 else rng.uniform(_PLAIN, 1.0),
        blur=rng.uniform(0.015, 0.05) if rng.random() < 0.15 else 0.0,
        tint=rng.uniform(0.88, 1.08, size=3),
    )


def render_scene(scene: Scene, size: int) -> RenderedScene:
    """Rasterise a scene, anti-aliased by 3 × 3 supersampling.

    Args:
        size: image side in pixels.
    """
    side = size * _SUPERSAMPLING
    background, stuff = _render_background(scene, size)
    canvas = background.repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1)
    litter = _render_litter(scene.litter, canvas)
    owners = np.full((side, side), -1)
    full_areas = []
    for index, item in enumerate(scene.objects):
        left, top, outline, colour = _render_sprite(item, side)
        full_areas.append(area(item.box) * size**2 * float(outline.mean()))
        rows, columns, inside = _crop(outline, top, left, side)
        owners[rows, columns][inside] = index
        left, top, opacity, colour = _defocus(outline, colour, left, top, item.blur * side)
        rows, columns, share = _crop(item.contrast * opacity[..., None], top, left, side)
        region, paint = canvas[rows, columns], _crop(colour, top, left, side)[2]
        region += share * (paint - region)
    pixels = _downsample(canvas * scene.brightness)
    coverage = [_downsample(owners == index) >= 0.5 for index in range(len(scene.objects))]
    return RenderedScene(
        image=np.clip(np.rint(pixels), 0, 255).astype(np.uint8),
        masks=np.array(coverage, dtype=bool).reshape(-1, size, size),
        full_areas=np.array(full_areas),
        stuff=stuff,
        litter=_downsample(litter) >= 0.5,
    )


def _downsample(values: np.ndarray) -> np.ndarray:
    """Mean over blocks of `_SUPERSAMPLING` × `_SUPERSAMPLING`, by far faster than numpy's over two axes."""
    values = values.astype(np.uint8) if values.dtype == bool else values  # a sum of bools is a bool
    rows = reduce(np.add, (values[k::_SUPERSAMPLING] for k in range(_SUPERSAMPLING)))
    blocks = reduce(np.add, (rows[:, k::_SUPERSAMPLING] for k in range(_SUPERSAMPLING)))
    return np.asarray(blocks / _SUPERSAMPLING**2)


def _pixel_box(box: np.ndarray, side: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(float(value) * side) for value in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _render_litter(spots: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """Paint the spots in place; return where they are."""
    side = len(canvas)
    places = np.arange(side) / side
    covered = np.zeros((side, side), dtype=bool)
    for centre_x, centre_y, radius, *colour in spots:
        rows, columns = (
            slice(*np.searchsorted(places, [centre - radius, centre + radius]))
            for centre in (centre_y, centre_x)
        )
        spot = (
            np.add.outer(np.abs(places[rows] - centre_y), np.abs(places[columns] - centre_x))
            < radius
        )
        canvas[rows, columns][spot] = colour
        covered[rows, columns] |= spot
    return covered


def _render_sprite(item: SceneObject, side: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Rasterise one sprite at its full extent: its left and top, its outline and its colours."""
    left, top, right, bottom = _pixel_box(item.box, side)
    u = (np.arange(right - left) + 0.5) / (right - left) * 2 - 1
    v = (np.arange(bottom - top) + 0.5) / (bottom - top) * 2 - 1
    grid_u, grid_v = np.meshgrid(u, v)
    outline, colour = SPRITES[item.category](grid_u, grid_v)
    shading = 1.08 - 0.2 * (grid_v[..., None] + 1) / 2
    return left, top, outline, np.clip(colour * item.tint * shading, 0, 255)


def _defocus(
    outline: np.ndarray, colour: np.ndarray, left: int, top: int, sigma: float
) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Blur a sprite over its borders: its new left and top, its opacity and its colours."""
    if sigma == 0:
        return left, top, outline.astype(np.float64), colour
    margin = int(np.ceil(3 * sigma))
    sides = ((margin, margin), (margin, margin))
    opacity = gaussian_filter(np.pad(outline.astype(np.float64), sides), sigma)
    weighted = np.pad(colour * outline[..., None], (*sides, (0, 0)))
    weighted = gaussian_filter(weighted, (sigma, sigma, 0))
    return left - margin, top - margin, opacity, weighted / np.maximum(opacity, 1e-6)[..., None]


def _crop(values: np.ndarray, top: int, left: int, side: int) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of the image that a sprite at (left, top) covers, and that part of it."""
    rows = slice(max(top, 0), min(top + values.shape[0], side))
    columns = slice(max(left, 0), min(left + values.shape[1], side))
    part = values[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return rows, columns, part


def _render_background(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint sky and grounds with anti-aliased borders; return RGB (size, size, 3) and stuff map."""
    x, y = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size)
    below_horizon = y - scene.horizon - 0.025 * np.sin(4 * x + scene.phase)
    below_shore = y - scene.shore - 0.03 * np.sin(5 * x - scene.phase)
    noon, dusk = rgb(120, 180, 235), rgb(235, 170, 140)
    zenith = noon + scene.hue * (dusk - noon)
    sky = zenith + (y / 0.5)[..., None] * (rgb(225, 235, 240) - zenith) * 0.7
    grass = rgb(120, 180, 80) - 28 * (y + 0.15 * np.sin(7 * x + 9 * y + scene.phase))[..., None]
    water = rgb(60, 130, 180) + 14 * np.sin(26 * y + 2 * np.sin(6 * x + scene.phase))[..., None]
    sand = rgb(228, 205, 150) + 8 * np.sin(14 * (y + 0.4 * x) + scene.phase)[..., None]
    layers = (sky, grass, water, sand)
    far, near = scene.grounds
    pixels = sky
    for depth, layer in ((below_horizon, layers[far]), (below_shore, layers[near])):
        pixels = pixels + np.clip(depth * size + 0.5, 0, 1)[..., None] * (layer - pixels)
    return pixels, np.where(below_horizon < 0, 0, np.where(below_shore < 0, far, near))


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
