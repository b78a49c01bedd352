"""Images that belong together, as frames of a film do, by their names."""

import re
from pathlib import Path

import pyarrow as pa

from data.coco.splitting import group_of, matched
from data.errors import InvalidConfig
from data.vocabulary.tables import GROUPS, Dataset, write_table


def write_groups(folder: Path, pattern: re.Pattern[str]) -> None:
    """Write `groups.parquet`, table with schema `GROUPS`, beside the tables of images and tiles.

    Args:
        folder: of the tables.
        pattern: see `group_of`; for file names.

    Raises:
        InvalidConfig: it matches no name.
    """
    dataset = Dataset(folder)
    table, columns = dataset.images, ("split", "image_id", "file_name")
    if dataset.tiles is not None:
        table, columns = dataset.tiles, ("split", "source_image_id", "source_file")
    images = sorted(set(zip(*(table[name].to_pylist() for name in columns), strict=True)))
    if not any(matched(name, pattern) for _, _, name in images):
        raise InvalidConfig(
            f"ingest.group_by {pattern.pattern!r} matches no file name, such as {images[0][2]}"
        )
    lowest: dict[tuple[str, str], int] = {}
    rows = []
    for split, image_id, name in images:
        group_id = lowest.setdefault((split, group_of(name, pattern)), image_id)
        rows.append({"split": split, "image_id": image_id, "group_id": group_id})
    write_table(pa.Table.from_pylist(rows, GROUPS), folder / "groups.parquet")
