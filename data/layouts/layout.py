"""Layouts: what stands where in an image, and how hard each thing is to detect."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import InvalidDataset
from data.layouts.options import EVERYTHING, AttributePolicy, Protocol
from data.layouts.protocols import SELECTION_COLUMNS, Selection, select
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset, box_array

logger = logging.getLogger(__name__)

_FEW = 0.1
"""Share of the images below which a protocol says little of them."""

Item = TypeVar("Item")


class PerceptionAttribute(StrEnum):
    """The paper's P.A. attribute d: whether a detector finds the object."""

    EASY = "easy"
    HARD = "hard"


@dataclass(frozen=True, slots=True)
class Layout:
    """The labelled boxes of one image.

    Attributes:
        image_id: COCO image id.
        width: of the image, pixels.
        height: of the image, pixels.
        boxes: xyxy in pixels of the image, float64 (num_objects, 4).
        category_ids: COCO category ids, int64 (num_objects,).
        is_thing: bool (num_objects,).
        attributes: one per object; None for stuff that was not scored and where attributes are off.
        masks: compressed RLE counts per object, None where the data set has no mask.
    """

    image_id: int
    width: int
    height: int
    boxes: np.ndarray
    category_ids: np.ndarray
    is_thing: np.ndarray
    attributes: tuple[PerceptionAttribute | None, ...]
    masks: tuple[str | None, ...]

    @property
    def boxes_normalized(self) -> np.ndarray:
        """Boxes in fractions of the image's sides, float64 (num_objects, 4)."""
        return self.boxes / np.array([self.width, self.height, self.width, self.height])

    def boxes_at(self, width: int, height: int) -> np.ndarray:
        """Boxes in pixels of the image at another size, float64 (num_objects, 4)."""
        return self.boxes * np.tile([width / self.width, height / self.height], 2)

    def with_policy(
        self, policy: AttributePolicy, of_categories: Mapping[int, AttributePolicy] | None = None
    ) -> "Layout":
        """Return the layout with attributes as measured, all easy or all hard.

        Stuff has one only where it was scored.

        Args:
            of_categories: category id to the policy that its boxes get instead.
        """
        policies = [(of_categories or {}).get(int(key), policy) for key in self.category_ids]
        chosen = {
            index: PerceptionAttribute(name)
            for index, name in enumerate(policies)
            if name != "origin" and (self.is_thing[index] or self.attributes[index])
        }
        return self.with_attributes(chosen)

    def with_attributes(self, attributes: Mapping[int, PerceptionAttribute]) -> "Layout":
        """Return the layout with other attributes for single boxes, by their index.

        Raises:
            IndexError: there is no such box.
            ValueError: the box is of stuff that was not scored.
        """
        changed = list(self.attributes)
        for index, attribute in attributes.items():
            if not self.is_thing[index] and changed[index] is None:
                raise ValueError(
                    f"image {self.image_id}: box {index} is of stuff without attribute"
                )
            changed[index] = attribute
        return replace(self, attributes=tuple(changed))

    def without_attributes(self) -> "Layout":
        """Return the layout with no attributes (the paper's ablation, GeoDiffusion's prompt)."""
        return replace(self, attributes=(None,) * len(self.attributes))


def read_layouts(
    dataset: Dataset,
    attributes: pa.Table | None,
    split: Split,
    protocol: Protocol = EVERYTHING,
) -> list[Layout]:
    """Read the layouts of a split that a protocol chooses, by image id; stuff follows the things.

    Args:
        attributes: table with schema `ATTRIBUTES`, or None for no attributes.

    Raises:
        InvalidDataset: a thing has no row in `attributes`.
    """
    selection = dataset_selection(dataset, split, protocol)
    wanted = set(selection.image_ids.tolist())
    objects = selection.objects.sort_by([("image_id", "ascending"), ("is_thing", "descending")])
    image_ids = objects["image_id"].to_numpy()
    starts = dict(zip(*np.unique(image_ids, return_index=True), strict=True))
    ends = np.searchsorted(image_ids, image_ids, side="right")
    boxes, category_ids = box_array(objects), objects["category_id"].to_numpy()
    is_thing = objects["is_thing"].to_numpy(zero_copy_only=False)
    values = _object_attributes(objects, attributes, split)
    masks = objects["mask"].to_pylist()
    layouts = []
    for image in dataset.split_images(split):
        if image["image_id"] not in wanted:
            continue
        start = int(starts.get(image["image_id"], 0))
        rows = range(start, int(ends[start]) if image["image_id"] in starts else start)
        layouts.append(
            Layout(
                image_id=image["image_id"],
                width=image["width"],
                height=image["height"],
                boxes=boxes[rows.start : rows.stop],
                category_ids=category_ids[rows.start : rows.stop],
                is_thing=is_thing[rows.start : rows.stop],
                attributes=tuple(values[row] for row in rows),
                masks=tuple(masks[row] for row in rows),
            )
        )
    return layouts


def blank_layouts(dataset: Dataset, split: Split) -> list[Layout]:
    """Layouts of images of which nothing is known, by image id: without boxes."""
    return [
        Layout(
            image_id=image["image_id"],
            width=image["width"],
            height=image["height"],
            boxes=np.zeros((0, 4)),
            category_ids=np.zeros(0, dtype=np.int64),
            is_thing=np.zeros(0, dtype=bool),
            attributes=(),
            masks=(),
        )
        for image in dataset.split_images(split)
    ]


def dataset_selection(dataset: Dataset, split: Split, protocol: Protocol) -> Selection:
    """The images and objects of a split that a protocol uses, and what it leaves out."""
    of_split = pc.field("split") == split
    images, objects = dataset.images.filter(of_split), dataset.objects.filter(of_split)
    return select(protocol, images, objects, dataset.categories)


def unseen_things(
    dataset: Dataset, split: Split, protocol: Protocol, trained: Protocol
) -> str | None:
    """What is to be said where a protocol has things of a split that another, trained on, leaves out."""
    if protocol == trained:
        return None
    asked, known = (
        _thing_ids(_light_selection(dataset, split, item)) for item in (protocol, trained)
    )
    unseen = len(np.setdiff1d(asked, known))
    if not unseen:
        return None
    given, of_training = (item.model_dump() for item in (protocol, trained))
    differing = ", ".join(
        f"{name} {value} there and {given[name]} here"
        for name, value in of_training.items()
        if value != given[name]
    )
    return (
        f"{unseen} of {len(asked)} things ({unseen / len(asked):.0%}) are of a kind that the generator "
        f"is not trained on ({differing})"
    )


def num_layouts(dataset: Dataset, split: Split, protocol: Protocol) -> int:
    """How many layouts of a split a protocol leaves."""
    return len(_light_selection(dataset, split, protocol).image_ids)


def _light_selection(dataset: Dataset, split: Split, protocol: Protocol) -> Selection:
    """Without the objects' masks."""
    images = dataset.images.filter(pc.field("split") == split)
    objects = dataset.object_columns(split, (*SELECTION_COLUMNS, "object_id"))
    return select(protocol, images, objects, dataset.categories)


def _thing_ids(selection: Selection) -> np.ndarray:
    return selection.objects.filter(selection.objects["is_thing"])["object_id"].to_numpy()


def require_layouts(dataset: Dataset, split: Split, protocol: Protocol, options: str) -> None:
    """Refuse a protocol that leaves no layout of a split; say loudly where it leaves few.

    Args:
        options: names of those that would change it, for the message.

    Raises:
        InvalidDataset: it leaves none.
    """
    num_images = dataset.images.filter(pc.field("split") == split).num_rows
    selection = _light_selection(dataset, split, protocol)
    if not len(selection.image_ids):
        raise InvalidDataset(
            f"no {split} image has a usable layout, {selection.dropped} were left out: change {options}"
        )
    if warning := few_layouts(len(selection.image_ids), num_images):
        logger.warning("%s images: %s: change %s", split, warning, options)


def few_layouts(num_left: int, num_images: int) -> str | None:
    """What is to be said of a protocol that leaves less than a tenth of the images.

    >>> few_layouts(21, 292)
    'the protocol leaves 21 of 292 layouts'
    """
    if num_left >= _FEW * num_images:
        return None
    return f"the protocol leaves {num_left} of {num_images} layouts"


def _object_attributes(
    objects: pa.Table, attributes: pa.Table | None, split: Split
) -> list[PerceptionAttribute | None]:
    if attributes is None:
        return [None] * objects.num_rows
    rows = attributes.filter(pc.field("split") == split)
    if rows.num_rows == 0 and pc.any(objects["is_thing"]).as_py():
        raise InvalidDataset(
            f"the attribute table is empty for split {split}: run the stage extract-attributes again"
        )
    known = dict(zip(_keys(rows), rows["attribute"].to_pylist(), strict=True))
    values: list[PerceptionAttribute | None] = []
    for key in _keys(objects):
        thing, object_id = key
        if thing and key not in known:
            raise InvalidDataset(
                f"object {object_id} of split {split} has no perception attribute: "
                "the attribute table belongs to another data set"
            )
        values.append(PerceptionAttribute(known[key]) if key in known else None)
    return values


def _keys(objects: pa.Table) -> list[tuple[bool, int]]:
    """Things and stuff may share ids."""
    return list(zip(objects["is_thing"].to_pylist(), objects["object_id"].to_pylist(), strict=True))


def count_objects(layouts: Iterable[Layout]) -> int:
    """Number of things in all layouts."""
    return sum(int(layout.is_thing.sum()) for layout in layouts)


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """Choose at most `count` items, evenly spread over the sequence."""
    if count >= len(items):
        return list(items)
    indices = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[index] for index in indices]


def image_seed(run_seed: int, image_id: int, repeat: int) -> int:
    """Seed of the `repeat`-th image of a layout, independent of batches, workers and order.

    >>> image_seed(0, 42, 1) == image_seed(0, 42, 1) != image_seed(0, 42, 2)
    True
    """
    digest = hashlib.sha256(f"{run_seed}/{image_id}/{repeat}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
