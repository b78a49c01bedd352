"""The Parquet tables of an ingested data set: schemas, writing, reading."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import ArtifactMissing
from data.vocabulary.splits import Split, places_file, split_folder, tile_folder


def _field(
    name: str, kind: pa.DataType, description: str, *, unit: str = "", nullable: bool = False
) -> pa.Field:
    metadata = {"description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


IMAGES = pa.schema(
    [
        _field("split", pa.string(), "train, val, spare or unlabelled"),
        _field("image_id", pa.int64(), "COCO image id, unique within its split"),
        _field("file_name", pa.string(), "path relative to the split's image folder"),
        _field("width", pa.int32(), "as the image is shown", unit="pixels"),
        _field("height", pa.int32(), "as the image is shown", unit="pixels"),
    ]
)
OBJECTS = pa.schema(
    [
        _field("split", pa.string(), "train, val, spare or unlabelled"),
        _field("object_id", pa.int64(), "COCO annotation id, unique within its split and kind"),
        _field("image_id", pa.int64(), "COCO image id"),
        _field("category_id", pa.int64(), "COCO category id"),
        _field("is_thing", pa.bool_(), "thing (true) or stuff (false)"),
        _field("is_crowd", pa.bool_(), "COCO's iscrowd"),
        _field("x_min", pa.float64(), "left edge", unit="pixels"),
        _field("y_min", pa.float64(), "top edge", unit="pixels"),
        _field("x_max", pa.float64(), "right edge, exclusive", unit="pixels"),
        _field("y_max", pa.float64(), "bottom edge, exclusive", unit="pixels"),
        _field("area", pa.float64(), "of the mask, of the box if there is none", unit="pixels²"),
        _field("mask", pa.string(), "COCO compressed RLE counts, column-major", nullable=True),
        _field("difficulty", pa.string(), "JSON, recorded causes of difficulty", nullable=True),
    ]
)
CATEGORIES = pa.schema(
    [
        _field("category_id", pa.int64(), "COCO category id"),
        _field("name", pa.string(), "class name"),
        _field("supercategory", pa.string(), "COCO supercategory, empty if none"),
        _field("is_thing", pa.bool_(), "thing (true) or stuff (false)"),
    ]
)
TILES = pa.schema(
    [
        _field("split", pa.string(), "train, val or spare"),
        _field("image_id", pa.int64(), "of the tile, which is an image of the data set"),
        _field("source_image_id", pa.int64(), "COCO image id of the whole image"),
        _field("source_file", pa.string(), "path relative to the split's folder of whole images"),
        _field("left", pa.int32(), "left edge in the whole image", unit="pixels"),
        _field("top", pa.int32(), "top edge in the whole image", unit="pixels"),
        _field("right", pa.int32(), "right edge in the whole image, exclusive", unit="pixels"),
        _field("bottom", pa.int32(), "bottom edge in the whole image, exclusive", unit="pixels"),
    ]
)
GROUPS = pa.schema(
    [
        _field("split", pa.string(), "train, val or spare"),
        _field("image_id", pa.int64(), "COCO image id; of the whole image where there are tiles"),
        _field("group_id", pa.int64(), "the lowest id of the images that it belongs together with"),
    ]
)
REFUSED = pa.schema(
    [
        _field("reason", pa.string(), "why it was left out, or how it was mended"),
        _field(
            "record", pa.string(), "split/id of an annotation or category, split/name of an image"
        ),
    ]
)
DETECTIONS = pa.schema(
    [
        _field("split", pa.string(), "train, val, spare or unlabelled"),
        _field("image_id", pa.int64(), "COCO image id"),
        _field("category_id", pa.int64(), "predicted COCO category id; -1: not of the data set"),
        _field("score", pa.float32(), "confidence in [0, 1]"),
        _field("x_min", pa.float32(), "pixels, left edge"),
        _field("y_min", pa.float32(), "pixels, top edge"),
        _field("x_max", pa.float32(), "pixels, right edge, exclusive"),
        _field("y_max", pa.float32(), "pixels, bottom edge, exclusive"),
        _field("detector", pa.string(), "which detector or results file this comes from"),
    ]
)
ATTRIBUTES = pa.schema(
    [
        _field("split", pa.string(), "train, val, spare or unlabelled"),
        _field("object_id", pa.int64(), "COCO annotation id, unique within its split and kind"),
        _field("image_id", pa.int64(), "COCO image id"),
        _field("category_id", pa.int64(), "COCO category id"),
        _field("is_thing", pa.bool_(), "thing (true) or stuff (false)"),
        _field("best_iou", pa.float64(), "IoU with the matched detection; 0 if there is none"),
        _field("matched_score", pa.float32(), "score of that detection", nullable=True),
        _field("matched_category_id", pa.int64(), "class of that detection", nullable=True),
        _field("attribute", pa.string(), "easy or hard"),
    ]
)

BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")

EDGES = ("left", "top", "right", "bottom")
"""Columns of a tile's place."""


def write_table(table: pa.Table, file: Path | BinaryIO) -> None:
    """Write a table as zstd-compressed Parquet."""
    pq.write_table(table, file, compression="zstd")


def box_array(table: pa.Table) -> np.ndarray:
    """The boxes of a table, xyxy in pixels, float64 (num_rows, 4)."""
    columns = [table[name].to_numpy() for name in BOX_COLUMNS]
    return np.stack(columns, dtype=np.float64).T  # each edge contiguous in memory


def row_numbers(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of some ids stands among others, of which it is one and which are each there once.

    >>> row_numbers(np.array([7, 3, 5]), np.array([5, 7, 5])).tolist()
    [2, 0, 2]
    """
    order = np.argsort(ids)
    return np.asarray(order[np.searchsorted(ids, wanted, sorter=order)])


@dataclass(frozen=True)
class Category:
    """One class. `category_id` is COCO's."""

    category_id: int
    name: str
    is_thing: bool


@dataclass(frozen=True)
class Dataset:
    """An ingested data set: the folder that `ingest` wrote.

    Attributes:
        folder: holds `images.parquet`, `objects.parquet`, `categories.parquet`, `refused.parquet`,
            `instances_{split}.json`, the accepted things as COCO files, and for Scenes `scenes/`. Where
            images were cut, all these are of the tiles, whose files lie in `tiles/`; `tiles.parquet` says
            of which images they are, and `whole_instances_val.json` has the things of these. Where images
            belong together, `groups.parquet` says which. That of unlabelled images, which
            `ingest-unlabelled` wrote, has neither objects nor categories.
        images_of: artifact whose images these are, where it is another one, as for pseudo-labels.
    """

    folder: Path
    images_of: Path | None = None

    @cached_property
    def images(self) -> pa.Table:
        """Table with schema `IMAGES`."""
        return self._read("images")

    @cached_property
    def objects(self) -> pa.Table:
        """Table with schema `OBJECTS`."""
        return self._read("objects")

    @cached_property
    def refused(self) -> pa.Table:
        """Table with schema `REFUSED`."""
        return self._read("refused")

    @cached_property
    def tiles(self) -> pa.Table | None:
        """Table with schema `TILES`; None where the images are whole."""
        path = self.folder / "tiles.parquet"
        return pq.read_table(path) if path.is_file() else None

    def groups(self, split: Split) -> dict[int, int]:
        """Image id of a split to what it belongs to, by the images' ids.

        Tiles of one image belong together, and so do images that `ingest.group_by` has a name for: what is
        known of one tells something of the others. That is an id of one of them, or of the whole image.
        """
        sources = {row["image_id"]: row["image_id"] for row in self.split_images(split)}
        if self.tiles is not None:
            tiles = self.tiles.filter(pc.field("split") == split)
            ids = (tiles[name].to_pylist() for name in ("image_id", "source_image_id"))
            sources = dict(zip(*ids, strict=True))
        groups = self.whole_groups(split)
        return {image_id: groups.get(source, source) for image_id, source in sources.items()}

    def whole_groups(self, split: Split) -> dict[int, int]:
        """As `groups`, of whole images; none where each is for itself."""
        path = self.folder / "groups.parquet"
        if not path.is_file():
            return {}
        table = pq.read_table(path, filters=pc.field("split") == split)
        return dict(zip(*(table[name].to_pylist() for name in GROUPS.names[1:]), strict=True))

    @cached_property
    def categories(self) -> tuple[Category, ...]:
        """Things, then stuff, each by id."""
        rows = self._read("categories").to_pylist()
        found = [Category(row["category_id"], row["name"], row["is_thing"]) for row in rows]
        return tuple(sorted(found, key=lambda item: (not item.is_thing, item.category_id)))

    @property
    def things(self) -> dict[int, str]:
        """Category id to name of the thing classes, in label order."""
        return {item.category_id: item.name for item in self.categories if item.is_thing}

    def image_folder(self, split: Split) -> Path:
        """Folder that the split's file names are relative to.

        Raises:
            ArtifactMissing: it is not known on this machine.
        """
        source = self.images_of or self.folder
        for inside in (source / tile_folder(split), source / split_folder(split)):
            if inside.is_dir():
                return inside
        places = places_file(source)
        try:
            return Path(json.loads(places.read_text())[split])
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactMissing(
                f"{places} does not say where the images of {split} lie: run the stage ingest"
            ) from error

    def instances_file(self, split: Split) -> Path:
        """COCO instances JSON of the accepted things of a split."""
        return self.folder / f"instances_{split}.json"

    @property
    def whole_instances_file(self) -> Path:
        """COCO instances JSON of the accepted things of validation images that were cut."""
        return self.folder / "whole_instances_val.json"

    def split_images(self, split: Split) -> list[dict[str, Any]]:
        """Rows of `images` of one split, by image id."""
        rows = self.images.filter(pc.field("split") == split).sort_by("image_id")
        return list(rows.to_pylist())

    def image_paths(self, split: Split) -> list[tuple[int, Path]]:
        """Image id and path of every image of a split, by image id."""
        folder = self.image_folder(split)
        return [(row["image_id"], folder / row["file_name"]) for row in self.split_images(split)]

    def object_columns(self, split: Split, names: Sequence[str]) -> pa.Table:
        """Some columns of the objects of a split, without reading the others."""
        return self._read("objects", list(names), pc.field("split") == split)

    def _read(
        self, name: str, columns: list[str] | None = None, rows: pc.Expression | None = None
    ) -> pa.Table:
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            raise ArtifactMissing(f"{path} does not exist: run the stage ingest")
        return pq.read_table(path, columns=columns, filters=rows)
