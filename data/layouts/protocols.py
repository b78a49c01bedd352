"""Which objects and images of a data set a protocol uses, and how many it leaves out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.vocabulary.boxes import xyxy_to_coco
from data.vocabulary.tables import BOX_COLUMNS, Category, box_array, row_numbers

ProtocolName = Literal["lama-val", "synthetic-train"]


class Protocol(BaseModel):
    """A rule for choosing layouts; crowds and the stuff class `other` are never part of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_area_fraction: float = Field(
        0.0, ge=0, lt=1, description="Boxes stay whose w·h / (W·H) is above this."
    )
    min_objects: int = Field(
        1, ge=0, description="Images stay that have at least so many objects left."
    )
    max_objects: int = Field(0, ge=0, description="And at most so many; 0: no limit.")
    counted: Literal["things", "things and stuff"] = Field(
        "things", description="What counts as objects."
    )

    @model_validator(mode="after")
    def _some_number_is_left(self) -> Self:
        if 0 < self.max_objects < self.min_objects:
            raise ValueError(
                f"no image has at least {self.min_objects} and at most {self.max_objects} objects: "
                "change min_objects or max_objects"
            )
        return self


Rule = ProtocolName | Protocol
"""A protocol by its name, or one of the user's."""

RuleOrRuns = Rule | Literal["run"]
"""The same, or the run's."""

SELECTION_COLUMNS = ("image_id", "category_id", "is_thing", "is_crowd", *BOX_COLUMNS)
"""Of the objects, what a selection looks at."""

EVERYTHING = Protocol(min_objects=0)
"""All images, and all objects that may be part of a layout."""

PROTOCOLS: dict[ProtocolName, Protocol] = {
    # LAMA and LostGAN, by way of GeoDiffusion's evaluation on val2017.
    "lama-val": Protocol(
        min_area_fraction=0.02,
        min_objects=3,
        max_objects=8,
        counted="things and stuff",
    ),
    # DetDiffusion, section 4.3: labels of train2017 with 3 to 8 objects.
    "synthetic-train": Protocol(min_objects=3, max_objects=8),
}

_PUBLISHED: dict[ProtocolName, str] = {
    "lama-val": "val2017: 3,097 images",
    "synthetic-train": "train2017: 47,429 images, 210,893 objects",
}


def protocol_of(rule: RuleOrRuns, of_run: Rule) -> Protocol:
    """The protocol that is meant."""
    meant = of_run if rule == "run" else rule
    return meant if isinstance(meant, Protocol) else PROTOCOLS[meant]


def published_counts(protocol: Protocol) -> str | None:
    """Counts of COCO that were published for a protocol."""
    return next((_PUBLISHED[name] for name, item in PROTOCOLS.items() if item == protocol), None)


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
