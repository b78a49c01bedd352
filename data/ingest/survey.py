"""What a data set is like, and the sizes and numbers of objects that suit it."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from data.ingest.options import TileConfig
from data.vocabulary.boxes import area as box_area
from data.vocabulary.splits import Split
from data.vocabulary.tables import BOX_COLUMNS, Dataset, box_array, row_numbers

SMALL_SIDE = 32
"""Pixels; what has less is small by COCO's measure."""

_TILE_SIDES = 8
"""Side of a tile, in those of the median object."""

_STEP = 32
"""Sides of tiles and detectors' images are multiples of it, pixels."""

_MAX_OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Survey:
    """One split of a data set; objects are things that are no crowds.

    Attributes:
        image_sizes: width and height in pixels, int64 (num_images, 2).
        objects_per_image: int64 (num_images,).
        object_sides: square roots of the boxes' areas in pixels, float64 (num_objects,).
        object_shares: the same over those of their images, float64 (num_objects,).
        num_masks: objects that have one.
        category_ids: of the classes that have an object.
    """

    image_sizes: np.ndarray
    objects_per_image: np.ndarray
    object_sides: np.ndarray
    object_shares: np.ndarray
    num_masks: int
    category_ids: frozenset[int]

    @property
    def median_size(self) -> tuple[int, int]:
        """Width and height of images, each the median."""
        width, height = np.median(self.image_sizes, axis=0).tolist()
        return round(width), round(height)

    def most_objects(self, share: float) -> int:
        """So many objects at most has a share of the images that have some.

        >>> counts = np.array([0, 1, 2, 3, 9])
        >>> Survey(counts, counts, counts, counts, 0, frozenset()).most_objects(0.8)
        9
        """
        some = self.objects_per_image[self.objects_per_image > 0]
        return int(np.quantile(some, share, method="inverted_cdf"))


def survey(dataset: Dataset, split: Split) -> Survey:
    """Look at the tables of one split."""
    images = dataset.images.filter(pc.field("split") == split)
    names = ["image_id", "category_id", "is_thing", "is_crowd", "mask", *BOX_COLUMNS]
    objects = dataset.object_columns(split, names)
    objects = objects.filter(pc.field("is_thing") & ~pc.field("is_crowd"))
    rows = row_numbers(images["image_id"].to_numpy(), objects["image_id"].to_numpy())
    sizes = np.stack([images["width"], images["height"]], axis=1).astype(np.int64)
    sides = np.sqrt(box_area(box_array(objects)))
    return Survey(
        image_sizes=sizes,
        objects_per_image=np.bincount(rows, minlength=images.num_rows),
        object_sides=sides,
        object_shares=sides / np.sqrt(sizes.prod(axis=1))[rows],
        num_masks=objects.num_rows - objects["mask"].null_count,
        category_ids=frozenset(objects["category_id"].to_pylist()),
    )


def fitting_tile(found: Survey, resolution: int) -> TileConfig | None:
    """Tiles of eight times the median object's side; None where whole images do.

    They do if half of the objects have 32 pixels of side or more where images are squashed to the generator's
    square, or if the tiles were no smaller than the images.

    Args:
        resolution: side of that square.
    """
    if np.median(found.object_shares) * resolution >= SMALL_SIDE:
        return None
    side = _rounded(_TILE_SIDES * float(np.median(found.object_sides)))
    if side >= max(found.median_size):
        return None
    large = float(np.quantile(found.object_sides, 0.9)) / side
    overlap = min(max(math.ceil(20 * large) / 20, TileConfig(size=side).overlap), _MAX_OVERLAP)
    return TileConfig(size=side, overlap=overlap)


def fitting_resolution(width: int, height: int) -> int:
    """The generator's resolution for images of a size: that of the paper which is nearer.

    >>> fitting_resolution(640, 480), fitting_resolution(320, 240)
    (512, 256)
    """
    return min((256, 512), key=lambda side: abs(math.log(side / math.sqrt(width * height))))


def fitting_sides(width: int, height: int, most: tuple[int, int]) -> tuple[int, int]:
    """Long and short side that a detector resizes images of a size to: twice as large, within limits.

    >>> fitting_sides(320, 240, (1333, 800)), fitting_sides(3000, 4000, (1333, 800))
    ((640, 480), (1333, 800))
    """
    sides = sorted((_rounded(2 * width), _rounded(2 * height)), reverse=True)
    return min(sides[0], most[0]), min(sides[1], most[1])


def _rounded(side: float) -> int:
    return _STEP * math.ceil(side / _STEP)
