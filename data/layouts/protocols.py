"""Which objects and images of a data set a protocol uses, and how many it leaves out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from data.layouts.options import Protocol
from data.vocabulary.boxes import xyxy_to_coco
from data.vocabulary.tables import BOX_COLUMNS, Category, box_array, row_numbers

SELECTION_COLUMNS = ("image_id", "category_id", "is_thing", "is_crowd", *BOX_COLUMNS)
"""Of the objects, what a selection looks at."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is left after one or more filters.

    Attributes:
        objects: rows of `objects`.
        image_ids: of the images left, int64 (num_images,).
        dropped: reason to the number of objects or images left out.
    """

    objects: pa.Table
    image_ids: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Number of images, things and stuff left, and of what was left out, by reason."""
        things = int(self.objects["is_thing"].to_numpy().sum())
        stuff = self.objects.num_rows - things
        return {"images": len(self.image_ids), "things": things, "stuff": stuff, **self.dropped}

    def keep_objects(self, keep: np.ndarray, reason: str) -> "Selection":
        """Leave out the objects where `keep` is false."""
        dropped = {**self.dropped, f"{reason} (objects)": int((~keep).sum())}
        return Selection(self.objects.filter(pa.array(keep)), self.image_ids, dropped)

    def keep_images(self, keep: np.ndarray, reason: str) -> "Selection":
        """Leave out the images where `keep` is false, and their objects."""
        image_ids = self.image_ids[keep]
        dropped = {**self.dropped, f"{reason} (images)": int((~keep).sum())}
        return Selection(_of_images(self.objects, image_ids), image_ids, dropped)


def _of_images(objects: pa.Table, image_ids: np.ndarray) -> pa.Table:
    return objects.filter(pa.array(np.isin(objects["image_id"].to_numpy(), image_ids)))


def without_crowds(selection: Selection) -> Selection:
    """Leave out crowd regions."""
    crowds = selection.objects["is_crowd"].to_numpy()
    return selection.keep_objects(~crowds, "crowd")


def without_other(selection: Selection, categories: Iterable[Category]) -> Selection:
    """Leave out the stuff class `other`, which in COCO stands for "a thing, no stuff"."""
    ids = [item.category_id for item in categories if not item.is_thing and item.name == "other"]
    return selection.keep_objects(
        ~np.isin(selection.objects["category_id"].to_numpy(), ids), "stuff class other"
    )


def above_area(selection: Selection, images: pa.Table, fraction: float) -> Selection:
    """Keep boxes whose area is above a fraction of their image's; equal is not above."""
    rows = row_numbers(images["image_id"].to_numpy(), selection.objects["image_id"].to_numpy())
    pixels = (images["width"].to_numpy().astype(np.int64) * images["height"].to_numpy())[rows]
    sides = xyxy_to_coco(box_array(selection.objects))[:, 2:]
    keep = sides.prod(axis=1) / pixels > fraction
    return selection.keep_objects(keep, f"box not above {fraction:.2%} of the image")


def with_count(
    selection: Selection,
    minimum: int,
    maximum: int,
    counted: Literal["things", "things and stuff"] = "things",
) -> Selection:
    """Keep images with `minimum` to `maximum` objects, both included; a maximum of 0 is none."""
    ids = selection.objects["image_id"].to_numpy()
    if counted == "things":
        ids = ids[selection.objects["is_thing"].to_numpy()]
    found, counts = np.unique(ids, return_counts=True)
    number = np.zeros(len(selection.image_ids), np.int64)
    present = np.isin(selection.image_ids, found)
    number[present] = counts[np.searchsorted(found, selection.image_ids[present])]
    left = selection.keep_images(number >= minimum, f"fewer than {minimum} objects")
    if not maximum:
        return left
    few = number[number >= minimum] <= maximum
    return left.keep_images(few, f"more than {maximum} objects")


def select(
    protocol: Protocol, images: pa.Table, objects: pa.Table, categories: Iterable[Category]
) -> Selection:
    """Apply a protocol to the images and objects of one split."""
    left = without_crowds(Selection(objects, images["image_id"].to_numpy()))
    left = without_other(left, categories)
    left = above_area(left, images, protocol.min_area_fraction)
    return with_count(left, protocol.min_objects, protocol.max_objects, protocol.counted)
