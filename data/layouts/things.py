"""The things of layouts, whatever image they are of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.layouts.layout import Layout, PerceptionAttribute


@dataclass(frozen=True, slots=True)
class Things:
    """Things of one or more layouts.

    Attributes:
        boxes: xyxy in fractions of their image's sides, float64 (num_things, 4).
        category_ids: int64 (num_things,).
        attributes: one per thing.
    """

    boxes: np.ndarray
    category_ids: np.ndarray
    attributes: Sequence[PerceptionAttribute | None]

    def __getitem__(self, chosen: np.ndarray) -> "Things":
        """Some of them, by their numbers."""
        attributes = [self.attributes[index] for index in chosen]
        return Things(self.boxes[chosen], self.category_ids[chosen], attributes)


def things_of(layouts: Sequence[Layout]) -> Things:
    """All things, in the order of the layouts and of their objects."""
    return Things(
        boxes=np.concatenate([item.boxes_normalized[item.is_thing] for item in layouts]),
        category_ids=np.concatenate([item.category_ids[item.is_thing] for item in layouts]),
        attributes=[
            attribute
            for item in layouts
            for attribute, thing in zip(item.attributes, item.is_thing, strict=True)
            if thing
        ],
    )
