"""Image files that splits have in common, though none should."""

import os
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.vocabulary.splits import Split


def shared_images(table: Path, folders: Mapping[Split, Path]) -> Iterator[str]:
    """What a user should know of files that two splits name alike; links to files are not followed.

    Args:
        table: of the schema `IMAGES`.
        folders: that the names are relative to.
    """
    images = pq.read_table(table, columns=["split", "file_name"])
    paths = {split: _paths(images, split, folder) for split, folder in folders.items()}
    for one, other in combinations(paths, 2):
        common = paths[one].filter(pc.is_in(paths[one], value_set=paths[other]))
        if len(common):
            yield (
                f"{len(common)} image files are in {one} and in {other} too, such as "
                f"{os.fsdecode(common[0].as_py())}: splits are to have none in common"
            )


def _paths(images: pa.Table, split: Split, folder: Path) -> pa.Array:
    """Each path once, as bytes: a folder's name may be no text."""
    names = images.filter(pc.field("split") == split)["file_name"].cast(pa.binary())
    root = os.fsencode(folder.resolve())
    return pc.binary_join_element_wise(root, names, b"/").unique()
