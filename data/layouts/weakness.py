"""Where a detector is weak: the share of things that are hard, by class and size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.layouts.layout import Layout, PerceptionAttribute
from data.layouts.things import things_of
from data.vocabulary.boxes import area

_PRIOR = 10
"""Things of the usual hard share, counted with those of each class and size, of which there may be few."""

_THIRDS = (1 / 3, 2 / 3)


@dataclass(frozen=True, slots=True)
class Weakness:
    """Shares of hard things by class and third of the sizes.

    Attributes:
        limits: areas between the thirds, in fractions of the image, float64 (2,).
        shares: by category id and third, 0 the smallest; each with ten things of the usual share.
        usual: of all things that have an attribute.
    """

    limits: np.ndarray
    shares: dict[tuple[int, int], float]
    usual: float

    @classmethod
    def measured(cls, layouts: Sequence[Layout]) -> "Weakness":
        """Count the things of layouts with their measured attributes."""
        things = things_of(layouts)
        sizes = area(things.boxes)
        known = np.array([attribute is not None for attribute in things.attributes])
        hard = np.array([attribute == PerceptionAttribute.HARD for attribute in things.attributes])
        limits, usual = np.quantile(sizes, _THIRDS), float(hard.sum() / max(known.sum(), 1))
        kinds = np.stack([things.category_ids, np.searchsorted(limits, sizes)])
        found, places = np.unique(kinds, axis=1, return_inverse=True)
        counts, numbers = np.bincount(places, known), np.bincount(places, hard)
        shares = (numbers + _PRIOR * usual) / (counts + _PRIOR)
        names = ((int(label), int(third)) for label, third in found.T)
        return cls(limits, dict(zip(names, shares.tolist(), strict=True)), usual)

    def of(self, layouts: Sequence[Layout]) -> np.ndarray:
        """The share of each thing's class and size, float64 (num_things,), of what was not seen the usual."""
        things = things_of(layouts)
        thirds = np.searchsorted(self.limits, area(things.boxes))
        kinds = zip(things.category_ids.tolist(), thirds.tolist(), strict=True)
        return np.array([self.shares.get(kind, self.usual) for kind in kinds])

    def mean(self, layout: Layout) -> float | None:
        """Over the things of a layout; None where it has none."""
        return float(self.of([layout]).mean()) if layout.is_thing.any() else None
