"""Parts of a split: folds, nested subsets, and the training files of detectors on them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import InvalidConfig
from data.layouts.layout import image_seed
from data.vocabulary.tables import Dataset, Split


def assign_folds(image_ids: Sequence[int], num_folds: int) -> list[list[int]]:
    """Deal images to folds in the order of a hash of their ids; sizes differ by one at most.

    >>> assign_folds([1, 2, 3, 4, 5], 2)
    [[1, 4, 5], [2, 3]]

    Raises:
        InvalidConfig: there are fewer images than folds.
    """
    if len(image_ids) < num_folds:
        raise InvalidConfig(f"{len(image_ids)} training images cannot make {num_folds} folds")
    order = sorted(image_ids, key=lambda image_id: (image_seed(0, image_id, 0), image_id))
    return [sorted(order[fold::num_folds]) for fold in range(num_folds)]


def fold_image_ids(dataset: Dataset, split: Split, number: int, num_folds: int) -> list[int]:
    """Ids of the images of one fold of a split; tiles of an image, which overlap, are in one fold.

    Raises:
        InvalidConfig: there are fewer images than folds.
    """
    image_ids = [row["image_id"] for row in dataset.split_images(split)]
    if dataset.tiles is None:
        return assign_folds(image_ids, num_folds)[number]
    tiles = dataset.tiles.filter(pc.field("split") == split)
    sources = tiles["source_image_id"]
    chosen = assign_folds(sources.unique().to_pylist(), num_folds)[number]
    return sorted(tiles.filter(pc.is_in(sources, pa.array(chosen)))["image_id"].to_pylist())


def first_images(image_ids: Sequence[int], count: int) -> list[int]:
    """Choose so many images in the order of a hash of their ids: few of them are among more.

    >>> set(first_images(range(9), 3)) < set(first_images(range(9), 5))
    True
    """
    order = sorted(image_ids, key=lambda image_id: (image_seed(1, image_id, 0), image_id))
    return sorted(order[:count])


def write_some(instances: Path, image_ids: Collection[int], path: Path) -> None:
    """Copy a COCO instances file with some of its images and their annotations."""
    document: dict[str, Any] = msgspec.json.decode(instances.read_bytes())
    kept = set(image_ids)
    document["images"] = [item for item in document["images"] if item["id"] in kept]
    document["annotations"] = [item for item in document["annotations"] if item["image_id"] in kept]
    path.write_bytes(msgspec.json.encode(document))
