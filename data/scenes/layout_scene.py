"""Layouts drawn by the renderer of Scenes: what a perfect generator would make of them."""

from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from data.layouts.layout import Layout, PerceptionAttribute
from data.scenes.classes import FIRST_STUFF_ID
from data.scenes.scenes import (
    Scene,
    SceneObject,
    render_scene,
    sample_litter,
    sample_object,
    sample_scene,
)
from data.scenes.writing import MIN_VISIBLE_PIXELS, thing_annotations


@dataclass(frozen=True, slots=True)
class DrawnLayout:
    """A layout's picture and exact labels.

    Attributes:
        image: uint8 (height, width, 3).
        annotations: COCO annotations of the things seen, with their `attribute`, without ids.
        num_hidden: things left out because they show too few pixels.
    """

    image: np.ndarray
    annotations: list[dict[str, Any]]
    num_hidden: int


def draw_layout(layout: Layout, seed: int) -> DrawnLayout:
    """Draw a layout as `scene_of` does, and label what is seen.

    Args:
        layout: of a square image, with the classes of Scenes.
    """
    scene = scene_of(layout, np.random.default_rng(seed))
    rendered = render_scene(scene, layout.width)
    seen = rendered.masks.sum(axis=(1, 2)) >= MIN_VISIBLE_PIXELS
    labels = thing_annotations(
        replace(scene, objects=tuple(compress(scene.objects, seen))),
        replace(rendered, masks=rendered.masks[seen], full_areas=rendered.full_areas[seen]),
    )
    attributes = (layout.attributes[index] for index in _back_to_front(layout)[seen])
    return DrawnLayout(
        image=rendered.image,
        annotations=[
            {**label, "attribute": attribute}
            for label, attribute in zip(labels, attributes, strict=True)
        ],
        num_hidden=int((~seen).sum()),
    )


def scene_of(layout: Layout, rng: np.random.Generator) -> Scene:
    """Draw a scene with a layout's things and stuff; the rest is as `sample_scene` draws it.

    A layout's box is that of what is *seen* of a thing. Here it is the thing's full extent: what was cut
    off or hidden is drawn whole and squeezed, and things in front may hide more of it. Hard things
    are faded or blurred; easy ones are neither, nor is it dark where there are some.

    Args:
        layout: with the classes of Scenes.

    Returns:
        The layout's things back to front, by the lower edges of their boxes.
    """
    order = _back_to_front(layout)
    attributes = [layout.attributes[index] for index in order]
    drawn = sample_scene(rng)
    while drawn.is_dark and PerceptionAttribute.EASY in attributes:
        drawn = sample_scene(rng)
    objects = tuple(
        replace(
            _look(attribute, rng),
            category=int(layout.category_ids[index]) - 1,
            box=layout.boxes_normalized[index],
        )
        for index, attribute in zip(order, attributes, strict=True)
    )
    scene = replace(_on_ground(drawn, layout), objects=objects)
    return replace(scene, litter=sample_litter(rng, scene.horizon, len(drawn.litter)))


def _back_to_front(layout: Layout) -> np.ndarray:
    """Indices of the things in painter's order."""
    things = np.flatnonzero(layout.is_thing)
    return things[np.argsort(layout.boxes[things, 3], kind="stable")]


def _look(attribute: PerceptionAttribute | None, rng: np.random.Generator) -> SceneObject:
    """Draw things until one is as easy or hard to detect as is asked for."""
    item = sample_object(rng)
    while attribute is not None and item.is_plain != (attribute == PerceptionAttribute.EASY):
        item = sample_object(rng)
    return item


def _on_ground(scene: Scene, layout: Layout) -> Scene:
    """The scene on the layout's stuff; what of it the layout lacks stays.

    Borders are waves: a border is half-way between the lower edge of what is above and the upper edge
    of what is below.
    """
    edges = {
        int(layout.category_ids[index]) - FIRST_STUFF_ID: layout.boxes_normalized[index, [1, 3]]
        for index in np.flatnonzero(~layout.is_thing)
    }
    sky = edges.pop(0, None)
    grounds = sorted(edges, key=lambda ground: float(edges[ground][0]))
    above = [] if sky is None else [sky[1]]
    below = [edges[grounds[0]][0]] if grounds else []
    horizon = float(np.mean([*above, *below])) if above or below else scene.horizon
    if not grounds:
        return replace(scene, horizon=horizon, shore=max(scene.shore, horizon))
    far, near = grounds[0], grounds[-1]
    shore = 1.0 if far == near else float(np.mean([edges[far][1], edges[near][0]]))
    return replace(scene, horizon=horizon, shore=shore, grounds=(far, near))
