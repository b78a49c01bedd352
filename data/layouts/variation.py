"""New layouts from those of real images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from data.errors import InvalidDataset
from data.layouts.layout import Layout, image_seed
from data.layouts.things import Things, things_of
from data.layouts.weakness import Weakness
from data.vocabulary.boxes import area, overlap

_MAX_SHIFT = 0.25
"""Of a thing, in fractions of the image's sides."""

_MAX_SCALE = 1.25
"""Factor by which a thing's sides grow, or shrink."""

_EDGE = 0.01
"""Distance from an edge, in fractions of the side, up to which it is taken to cut the thing off."""

_ATTEMPTS = 20
"""To place a thing."""


def new_layouts(
    layouts: Sequence[Layout],
    source: Literal["jittered", "recombined", "aimed"],
    count: int,
    *,
    seed: int,
    min_area_fraction: float = 0.0,
) -> list[Layout]:
    """Make layouts of the stuff and the number of things of random ones, half of them mirrored.

    Things are the layout's own, or for `recombined` drawn from those of all layouts, with class, attribute
    and place in fractions of the image's sides; for `aimed` so too, in proportion to the share of hard things
    among those of their class and size. Each is scaled and shifted within bounds. They overlap
    no more than the layout's own do: one that finds no such place stays, or of drawn ones goes where it
    overlaps least. Layout k depends on the layouts, `seed` and k alone.

    Args:
        layouts: one of them with a thing at least.
        min_area_fraction: boxes above it, in fractions of their image, stay above it.

    Returns:
        Layouts with the image id of the one whose stuff they have, and without masks.

    Raises:
        InvalidDataset: there is no thing.
    """
    if not any(item.is_thing.any() for item in layouts):
        raise InvalidDataset(f"train_layout_source={source}: no layout has a thing to draw")
    pool = None if source == "jittered" else things_of(layouts)
    weights = Weakness.measured(layouts).of(layouts).cumsum() if source == "aimed" else None
    made = []
    for number in range(count):
        rng = np.random.default_rng([number, image_seed(seed, number, 0)])  # no image's own
        base = layouts[int(rng.integers(len(layouts)))]
        own = things_of([base])
        limit = _greatest_overlap(own.boxes)
        things = pool[_drawn(rng, len(pool.boxes), weights, len(own.boxes))] if pool else own
        boxes = _jittered(things.boxes, limit, min_area_fraction, rng)
        made.append(_on_stuff(base, replace(things, boxes=boxes), mirrored=rng.random() < 0.5))
    return made


def _drawn(
    rng: np.random.Generator, among: int, cumulated: np.ndarray | None, count: int
) -> np.ndarray:
    """Numbers below `among`, by weights that are summed up, or evenly where there are none, (count,)."""
    if cumulated is None or not cumulated[-1]:
        return rng.integers(among, size=count)
    return np.searchsorted(cumulated, rng.random(count) * cumulated[-1], side="right")


def _greatest_overlap(boxes: np.ndarray) -> float:
    """Of any two boxes; 0 where there are none."""
    pairs = overlap(boxes[:, None], boxes[None])
    return float(pairs[np.triu_indices(len(boxes), 1)].max(initial=0))


def _jittered(
    boxes: np.ndarray, limit: float, min_area_fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Move one box after another, the largest first: the others leave it less room.

    Each goes to the first place that the limit allows beside all others, else where it overlaps least,
    which may be where it is.
    """
    moved = boxes.copy()
    for index in np.argsort(-area(boxes)):
        places = np.concatenate([_places(boxes[index], min_area_fraction, rng), boxes[[index]]])
        others = np.delete(moved, index, axis=0)
        worst = overlap(places[:, None], others[None]).max(axis=1, initial=0)
        moved[index] = places[np.maximum(worst, limit).argmin()]
    return moved


def _places(box: np.ndarray, min_area_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Scale and shift a box within the image, (_ATTEMPTS, 4); what an edge cuts off stays at it."""
    sides = box[2:] - box[:2]
    scale = np.minimum(_MAX_SCALE ** rng.uniform(-1, 1, (_ATTEMPTS, 1)), 1 / sides.max())
    scale[area(box) * scale**2 <= min_area_fraction] = 1
    scaled = sides * scale
    room = np.maximum(1 - scaled, 0)
    start = np.clip((box[:2] + box[2:] - scaled) / 2, 0, room)
    corners = rng.uniform(np.maximum(start - _MAX_SHIFT, 0), np.minimum(start + _MAX_SHIFT, room))
    corners = np.where(box[2:] > 1 - _EDGE, room, corners)
    corners = np.where(box[:2] < _EDGE, 0, corners)
    return np.concatenate([corners, np.minimum(corners + scaled, 1)], axis=1)


def _on_stuff(base: Layout, things: Things, *, mirrored: bool) -> Layout:
    """A layout of things on another's stuff."""
    stuff = ~base.is_thing
    boxes = np.concatenate([things.boxes, base.boxes_normalized[stuff]])
    if mirrored:
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    of_stuff = (item for item, is_stuff in zip(base.attributes, stuff, strict=True) if is_stuff)
    return replace(
        base,
        boxes=boxes * np.tile([base.width, base.height], 2),
        category_ids=np.concatenate([things.category_ids, base.category_ids[stuff]]),
        is_thing=np.arange(len(boxes)) < len(things.boxes),
        attributes=(*things.attributes, *of_stuff),
        masks=(None,) * len(boxes),
    )
