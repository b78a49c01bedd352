"""From the tables back to COCO files."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.vocabulary.boxes import xyxy_to_coco
from data.vocabulary.splits import Split
from data.vocabulary.tables import BOX_COLUMNS, box_array
from data.workers import Workers

_ROWS = 1 << 14
_DECIMALS = 9


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: int
    height: int


class _Box(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    area: float
    iscrowd: int
    bbox: list[float]


class _Object(_Box, omit_defaults=True):
    segmentation: dict[str, Any] | list[list[float]]
    difficulty: msgspec.Raw = msgspec.Raw(b"null")


def export_boxes(folder: Path, split: Split, path: Path, num_workers: int = 1) -> None:
    """Write the things of a split as a COCO instances file, boxes alone, in constant memory.

    Args:
        folder: holds the tables.
        path: of the new file.
        num_workers: processes.
    """
    num_groups = pq.read_metadata(folder / "objects.parquet").num_row_groups
    with Workers((folder, split), num_workers) as workers:
        records = workers.map(_encoded_boxes, range(num_groups))
        _write(folder, split, path, records)


def _encoded_boxes(source: tuple[Path, Split], group: int) -> bytes:
    folder, split = source
    columns = ["object_id", "image_id", "category_id", "area", "is_crowd"]
    parts = [
        [_Box(*row) for row in zip(*_values(table, columns), _boxes_xywh(table), strict=True)]
        for table in _things(folder, split, [*columns, *BOX_COLUMNS], groups=[group])
    ]
    return _encoded(list(chain.from_iterable(parts)))


def export_objects(folder: Path, split: Split, path: Path) -> None:
    """Write the things of a split as a COCO file: masks as compressed RLE, else boxes as polygons.

    What was ingested without a remark comes back equal, to the ninth decimal of a pixel.

    Args:
        folder: holds the tables.
        path: of the new file.
    """
    table = pq.read_table(folder / "images.parquet", filters=pc.field("split") == split)
    names = ("image_id", "height", "width")
    sizes = {key: size for key, *size in zip(*_values(table, names), strict=True)}
    columns = ["object_id", "image_id", "category_id", "area", "is_crowd"]
    more = ["mask", "difficulty"]

    def record(row: tuple[Any, ...], mask: str | None, causes: str | None) -> _Object:
        object_id, image_id, category_id, area, crowd, box = row
        left, top, width, height = box
        right, bottom = left + width, top + height
        outline = [[left, top, right, top, right, bottom, left, bottom]]
        segmentation = {"size": sizes[image_id], "counts": mask} if mask else outline
        raw = msgspec.Raw((causes or "null").encode())
        return _Object(object_id, image_id, category_id, area, crowd, box, segmentation, raw)

    records = (
        _encoded(
            map(
                record,
                zip(*_values(batch, columns), _boxes_xywh(batch), strict=True),
                *_values(batch, more),
            )
        )
        for batch in _things(folder, split, [*columns, *BOX_COLUMNS, *more])
    )
    _write(folder, split, path, records)


def _things(
    folder: Path, split: Split, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    with pq.ParquetFile(folder / "objects.parquet") as file:
        read = ["split", "is_thing", *columns]
        for batch in file.iter_batches(_ROWS, row_groups=groups, columns=read):
            wanted = (pc.field("split") == split) & pc.field("is_thing")
            yield pa.Table.from_batches([batch]).filter(wanted)


def _values(table: pa.Table, columns: Sequence[str]) -> list[list[Any]]:
    """Columns as lists, by way of numpy where it can, which is faster."""
    return [
        table[name].to_pylist()
        if pa.types.is_string(table.schema.field(name).type)
        else table[name].to_numpy().tolist()
        for name in columns
    ]


def _boxes_xywh(table: pa.Table) -> list[list[float]]:
    return xyxy_to_coco(box_array(table)).tolist()


def _images(folder: Path, split: Split) -> Iterator[bytes]:
    with pq.ParquetFile(folder / "images.parquet") as file:
        for batch in file.iter_batches(_ROWS):
            table = pa.Table.from_batches([batch]).filter(pc.field("split") == split)
            names = ("image_id", "file_name", "width", "height")
            yield _encoded(_Image(*row) for row in zip(*_values(table, names), strict=True))


def _write(folder: Path, split: Split, path: Path, annotations: Iterator[bytes]) -> None:
    things = pq.read_table(folder / "categories.parquet", filters=pc.field("is_thing"))
    categories = [
        {"id": row["category_id"], "name": row["name"], "supercategory": row["supercategory"]}
        for row in things.sort_by("category_id").to_pylist()
    ]
    with path.open("wb") as file:
        file.write(
            b'{"info": {"description": "written by detdiffusion"}, "licenses": [],\n"images": '
        )
        _write_array(file, _images(folder, split))
        file.write(b',\n"annotations": ')
        _write_array(file, annotations)
        file.write(b',\n"categories": ' + msgspec.json.encode(categories) + b"}\n")


def _encoded(records: Iterable[msgspec.Struct]) -> bytes:
    """Records as the text between the brackets of an array."""
    return msgspec.json.encode(list(records))[1:-1]


def _write_array(file: BinaryIO, parts: Iterable[bytes]) -> None:
    file.write(b"[")
    separator = b""
    for part in filter(None, parts):
        file.write(separator + part)
        separator = b",\n"
    file.write(b"]")
