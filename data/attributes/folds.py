"""Parts of a split: folds, nested subsets, and the training files of detectors on them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from data.errors import InvalidConfig
from data.layouts.layout import image_seed
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset


def assign_folds(image_ids: Sequence[int], num_folds: int) -> list[list[int]]:
    """Deal images, or groups of them, to folds in the order of a hash of their ids, as many to each.

    Sizes differ by one at most.

    >>> assign_folds([1, 2, 3, 4, 5], 2)
    [[1, 4, 5], [2, 3]]

    Raises:
        InvalidConfig: there are fewer images than folds.
    """
    if len(image_ids) < num_folds:
        raise InvalidConfig(
            f"{len(image_ids)} training images, or groups of them, cannot make {num_folds} folds"
        )
    order = sorted(image_ids, key=lambda image_id: (image_seed(0, image_id, 0), image_id))
    return [sorted(order[fold::num_folds]) for fold in range(num_folds)]


def fold_image_ids(dataset: Dataset, split: Split, number: int, num_folds: int) -> list[int]:
    """Ids of the images of one fold of a split; those that belong together are in one fold.

    Raises:
        InvalidConfig: there are fewer images than folds.
    """
    groups = _groups(dataset, split)
    chosen = assign_folds(list(groups), num_folds)[number]
    return sorted(image_id for key in chosen for image_id in groups[key])


def first_image_ids(dataset: Dataset, split: Split, count: int) -> list[int]:
    """Choose images of a split in the order of a hash of their ids: few of them are among more.

    Returns:
        Ids of so many images, with all that belong together with them, so that there may be some more.
    """
    groups = _groups(dataset, split)
    chosen: list[int] = []
    for key in sorted(groups, key=lambda image_id: (image_seed(1, image_id, 0), image_id)):
        if len(chosen) >= count:
            break
        chosen += groups[key]
    return sorted(chosen)


def _groups(dataset: Dataset, split: Split) -> dict[int, list[int]]:
    """Ids of the images of a split by what they belong to."""
    groups: dict[int, list[int]] = {}
    for image_id, group in dataset.groups(split).items():
        groups.setdefault(group, []).append(image_id)
    return groups


def write_some(instances: Path, image_ids: Collection[int], path: Path) -> None:
    """Copy a COCO instances file with some of its images and their annotations."""
    document: dict[str, Any] = msgspec.json.decode(instances.read_bytes())
    kept = set(image_ids)
    document["images"] = [item for item in document["images"] if item["id"] in kept]
    document["annotations"] = [item for item in document["annotations"] if item["image_id"] in kept]
    path.write_bytes(msgspec.json.encode(document))
