"""Large images cut into overlapping tiles: what the tiles show of the objects, and their files."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import InvalidConfig, InvalidDataset
from data.ingest.options import TileConfig
from data.ingest.refusals import Refusals
from data.ingest.table_writer import TableWriter
from data.progress import Progress
from data.vocabulary.boxes import area as box_area
from data.vocabulary.boxes import mask_to_box
from data.vocabulary.images import read_rgb
from data.vocabulary.masks import decode_mask, encode_mask
from data.vocabulary.splits import Split, tile_folder
from data.vocabulary.tables import (
    BOX_COLUMNS,
    EDGES,
    IMAGES,
    OBJECTS,
    REFUSED,
    TILES,
    Dataset,
    box_array,
)
from data.workers import Workers

_MOST_PIXELS = 10
"""Of the tiles, in those of the images, without a word; an overlap of half a side makes 4 times as many."""


def tile_boxes(width: int, height: int, *, size: int, overlap: float) -> np.ndarray:
    """Where the tiles of an image lie, row by row; int64 (num_tiles, 4), xyxy.

    They cover every pixel. The last in each direction is moved inwards, so that each has the full size,
    or that of the image where it is smaller.

    Args:
        width: of the image, pixels.
        height: likewise.
        size: side of a tile, pixels.
        overlap: of neighbours, share of the side in [0, 1).

    >>> tile_boxes(10, 3, size=4, overlap=0.25).tolist()
    [[0, 0, 4, 3], [3, 0, 7, 3], [6, 0, 10, 3]]
    """
    step = max(round(size * (1 - overlap)), 1)
    lasts = [max(side - size, 0) for side in (width, height)]
    starts = [np.minimum(np.arange(0, last + step, step), last) for last in lasts]
    corners = np.stack(np.meshgrid(*starts), axis=-1).reshape(-1, 2)
    return np.hstack([corners, corners + np.minimum(size, [width, height])])


@dataclass(frozen=True, slots=True)
class Part:
    """What a tile shows of an object.

    Attributes:
        share: of its mask's area, of its box's where it has no mask; in (0, 1].
        box: xyxy in pixels of the tile, float64 (4,).
        area: square pixels.
        mask: compressed RLE counts of the tile's size; None where the object has none.
    """

    share: float
    box: np.ndarray
    area: float
    mask: str | None


def visible_part(
    box: np.ndarray, area: float, mask: np.ndarray | None, tile: np.ndarray
) -> Part | None:
    """Clip an object to a tile; None where the tile shows nothing of it.

    Args:
        box: xyxy in pixels of the image, (4,).
        area: square pixels.
        mask: bool, of the image's size.
        tile: xyxy in whole pixels of the image, (4,).
    """
    clipped = np.concatenate([np.maximum(box[:2], tile[:2]), np.minimum(box[2:], tile[2:])])
    share = float(box_area(clipped) / box_area(box))
    if not share:
        return None
    part = Part(share, clipped - np.tile(tile[:2], 2), area * share, None)
    if mask is None:
        return part
    left, top, right, bottom = tile
    shown = mask[top:bottom, left:right]
    counts = encode_mask(shown)["counts"]
    pixels, of_all = int(shown.sum()), int(mask.sum())
    if pixels == of_all:  # the whole mask, or one thinner than a pixel
        return Part(1.0 if pixels else share, part.box, area if pixels else part.area, counts)
    return Part(pixels / of_all, mask_to_box(shown), pixels, counts) if pixels else None


def write_tiles(
    config: TileConfig, splits: Iterable[Split], whole: Path, folder: Path, num_workers: int = 1
) -> dict[str, Any]:
    """Write the tables of a data set whose images are tiles, and `tiles.parquet`.

    Ids are counted from 1 in the order of the images, and in each row by row. An object is a row in every
    tile that shows enough of it; crowds and stuff, which are areas, in every tile that shows any of them.

    Args:
        whole: folder of the tables of the whole images.
        folder: of the new ones; exists.
        num_workers: processes.

    Returns:
        Counts by split, the objects that no tile has, as rows of refusals, and warnings.

    Raises:
        InvalidConfig: no image is larger than a tile.
        InvalidDataset: no tile of a split has an object.
    """
    source = Dataset(whole)
    _require_larger(config, source.images)
    shutil.copyfile(whole / "categories.parquet", folder / "categories.parquet")
    counts: dict[str, Counter[str]] = {}
    with (
        TableWriter(folder / "images.parquet", IMAGES) as images,
        TableWriter(folder / "objects.parquet", OBJECTS) as objects,
        TableWriter(folder / "tiles.parquet", TILES) as tiles,
        TableWriter(folder / "refused.parquet", REFUSED) as refused,
    ):
        for batch in source.refused.to_batches():
            refused.write(batch)
        refusals = Refusals(refused)
        for split in splits:
            count = counts[split] = Counter(images=0, things=0, crowds=0, stuff=0)
            for found in _tiled(config, source, split, num_workers):
                images.write(found.images)
                tiles.write(found.tiles)
                _write_objects(objects, found.objects, count)
                count["images"] += found.images.num_rows
                count["whole images"] += 1
                if found.lost:
                    refusals.add(
                        "no tile shows enough of it", *(f"{split}/{key}" for key in found.lost)
                    )
            for table in (images, objects, tiles):
                table.flush()
            if count["things"] <= count["crowds"]:
                raise InvalidDataset(
                    f"ingest.tile leaves no object of split {split}, {refusals}: choose a larger "
                    "ingest.tile.size, or a smaller ingest.tile.min_visible"
                )
    return {"counts": {name: dict(count) for name, count in counts.items()},
            "refused": refusals.rows(),
            "warnings": list(_many_pixels(config, source.images, Dataset(folder).images))}  # fmt: skip


def cut_images(
    folder: Path,
    image_folders: Mapping[Split, Path],
    out: Path,
    num_workers: int,
    on_progress: Progress,
) -> None:
    """Write the tiles of every image as PNG files.

    Args:
        folder: holds the tables that `write_tiles` wrote.
        image_folders: of the whole images.
        out: where the tiles are put, in `tile_folder` of each split.
        num_workers: processes.
        on_progress: told of the whole images.

    Raises:
        InvalidDataset: an image cannot be read, or has another size than its annotations say.
    """
    rows = [
        {**tile, **image}
        for tile, image in zip(
            pq.read_table(folder / "tiles.parquet").to_pylist(),
            pq.read_table(folder / "images.parquet").to_pylist(),
            strict=True,
        )
    ]
    keys = [(row["split"], row["source_image_id"]) for row in rows]
    done, total = 0, len(set(keys))
    for split, of_split in groupby(rows, key=lambda row: row["split"]):
        place = out / tile_folder(split)
        place.mkdir(parents=True, exist_ok=True)
        with Workers((image_folders[split], place), num_workers) as workers:
            images = groupby(of_split, key=lambda row: row["source_image_id"])
            for _ in workers.map(_cut, (list(tiles) for _, tiles in images)):
                done += 1
                on_progress(done, total, "images cut")


@dataclass(frozen=True, slots=True)
class _Objects:
    """The objects of a split, by image, and the least visible share of a thing."""

    table: pa.Table
    min_visible: float


@dataclass(frozen=True, slots=True)
class _Image:
    """A row of `images`, its tiles (num_tiles, 4), the id of the first, and its rows of the objects."""

    row: Mapping[str, Any]
    tiles: np.ndarray
    first_id: int
    objects: slice


@dataclass(frozen=True, slots=True)
class _TiledImage:
    """Rows of the tables, objects without ids yet; and the ids of objects that no tile has."""

    images: pa.RecordBatch
    tiles: pa.RecordBatch
    objects: pa.RecordBatch
    lost: list[int]


def _require_larger(config: TileConfig, images: pa.Table) -> None:
    sides = np.stack([images["width"], images["height"]], axis=1)
    if sides.max() <= config.size:
        width, height = sides[sides.prod(axis=1).argmax()]
        raise InvalidConfig(
            f"ingest.tile.size {config.size} cuts no image, the largest is {width} × {height} pixels: "
            "choose a smaller one, or leave ingest.tile out"
        )


def _many_pixels(config: TileConfig, images: pa.Table, tiles: pa.Table) -> Iterator[str]:
    """Tell of tiles that show the same pixels many times over."""
    of_images, of_tiles = (
        int(np.multiply(table["width"], table["height"], dtype=np.int64).sum())
        for table in (images, tiles)
    )
    if of_tiles > _MOST_PIXELS * of_images:
        yield (
            f"ingest.tile.overlap {config.overlap:g} makes {tiles.num_rows:,} tiles of {images.num_rows:,} "
            f"images, with {of_tiles / of_images:,.0f} times their pixels: a smaller one makes fewer"
        )


def _tiled(
    config: TileConfig, source: Dataset, split: Split, num_workers: int
) -> Iterator[_TiledImage]:
    order = [("image_id", "ascending"), ("is_thing", "descending"), ("object_id", "ascending")]
    table = source.object_columns(split, OBJECTS.names).sort_by(order).combine_chunks()
    images, first_id, of_split = [], 1, source.split_images(split)
    image_ids, wanted = table["image_id"].to_numpy(), [row["image_id"] for row in of_split]
    starts, stops = (np.searchsorted(image_ids, wanted, side=side) for side in ("left", "right"))
    for row, start, stop in zip(of_split, starts, stops, strict=True):
        places = tile_boxes(row["width"], row["height"], size=config.size, overlap=config.overlap)
        images.append(_Image(row, places, first_id, slice(start, stop)))
        first_id += len(places)
    with Workers(_Objects(table, config.min_visible), num_workers) as workers:
        yield from workers.map(_tile_image, images)


def _tile_image(objects: _Objects, image: _Image) -> _TiledImage:
    row, tiles = image.row, image.tiles
    own = objects.table.slice(image.objects.start, image.objects.stop - image.objects.start)
    parts = [
        (number, index, part)
        for index, (item, box) in enumerate(zip(own.to_pylist(), box_array(own), strict=True))
        for number, part in _parts(item, box, row, tiles)
        if part.share >= objects.min_visible or item["is_crowd"] or not item["is_thing"]
    ]
    parts.sort(key=lambda found: found[:2])
    kept = [index for _, index, _ in parts]
    ids = image.first_id + np.arange(len(tiles))
    sides = tiles[:, 2:] - tiles[:, :2]
    split = [row["split"]] * len(tiles)
    names = [f"{key:012d}.png" for key in ids]
    lost = np.setdiff1d(np.arange(own.num_rows), kept)
    return _TiledImage(
        _batch(IMAGES, [split, ids, names, *sides.T]),
        _batch(TILES, [split, ids, [row["image_id"]] * len(tiles),
                       [row["file_name"]] * len(tiles), *tiles.T]),
        _objects_batch(own.take(pa.array(kept, pa.int64())), image.first_id, parts),
        own["object_id"].take(pa.array(lost)).to_pylist(),
    )  # fmt: skip


def _parts(
    item: Mapping[str, Any], box: np.ndarray, image: Mapping[str, Any], tiles: np.ndarray
) -> Iterator[tuple[int, Part]]:
    """The tiles that show something of an object, by number."""
    mask = decode_mask(item["mask"], image["height"], image["width"]) if item["mask"] else None
    for number, tile in enumerate(tiles):
        if part := visible_part(box, item["area"], mask, tile):
            yield number, part


def _objects_batch(
    objects: pa.Table, first_id: int, parts: list[tuple[int, int, Part]]
) -> pa.RecordBatch:
    boxes = np.array([part.box for *_, part in parts], np.float64).reshape(-1, 4)
    columns = {name: objects[name].combine_chunks() for name in OBJECTS.names}
    columns |= {
        "image_id": [first_id + number for number, *_ in parts],
        "area": [part.area for *_, part in parts],
        "mask": [part.mask for *_, part in parts],
        **dict(zip(BOX_COLUMNS, boxes.T, strict=True)),
    }
    return _batch(OBJECTS, list(columns.values()))


def _batch(schema: pa.Schema, columns: list[Any]) -> pa.RecordBatch:
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _write_objects(objects: TableWriter, batch: pa.RecordBatch, count: Counter[str]) -> None:
    """Number the objects of a split, and count them."""
    first = 1 + count["things"] + count["stuff"]
    ids = pa.array(np.arange(first, first + batch.num_rows))
    column = OBJECTS.get_field_index("object_id")
    objects.write(batch.set_column(column, OBJECTS.field(column), ids))
    is_thing, is_crowd = (
        batch[name].to_numpy(zero_copy_only=False) for name in ("is_thing", "is_crowd")
    )
    count["things"] += int(is_thing.sum())
    count["crowds"] += int((is_thing & is_crowd).sum())
    count["stuff"] += int((~is_thing).sum())


def _cut(folders: tuple[Path, Path], tiles: list[dict[str, Any]]) -> None:
    """Write the tiles of one image."""
    source, out = folders
    path = source / tiles[0]["source_file"]
    image = read_rgb(path)
    boxes = [tuple(tile[name] for name in EDGES) for tile in tiles]
    if image.size != boxes[-1][2:]:  # the last tile ends where the image does
        raise InvalidDataset(
            f"{path} has {image.width} × {image.height} pixels, not {boxes[-1][2]} × {boxes[-1][3]} as "
            "its JSON says: leave ingest.check_images on"
        )
    for tile, box in zip(tiles, boxes, strict=True):
        image.crop(box).save(out / tile["file_name"], compress_level=1)
