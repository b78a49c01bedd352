"""Attributes of single objects that a user sets."""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import InvalidDataset
from data.layouts.layout import PerceptionAttribute
from data.vocabulary.splits import Split


def read_overrides(path: Path) -> pa.Table:
    """Read a table with the columns `object_id` and `attribute`.

    Raises:
        InvalidDataset: it is none, or an attribute is neither easy nor hard.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidDataset(f"synthesize.attribute_overrides {path}: {error}") from error
    if not {"object_id", "attribute"} <= set(table.column_names):
        raise InvalidDataset(f"attribute overrides {path} need the columns object_id and attribute")
    values = table["attribute"].unique().to_pylist()
    if wrong := sorted(set(map(str, values)) - set(PerceptionAttribute)):
        raise InvalidDataset(
            f"attribute overrides {path} have the values {wrong}: use easy and hard"
        )
    return table


def check_objects(overrides: pa.Table, known: Collection[int | None], split: Split) -> None:
    """Refuse overrides of objects that are not known.

    Raises:
        InvalidDataset: there are some.
    """
    unknown = sorted(set(overrides["object_id"].to_pylist()) - set(known))
    if unknown:
        raise InvalidDataset(f"attribute overrides name unknown things of {split}: {unknown[:5]}")


def override_attributes(attributes: pa.Table, overrides: pa.Table, split: Split) -> pa.Table:
    """Replace the attributes of single things of a split.

    Args:
        attributes: table with schema `ATTRIBUTES`.
        overrides: as `read_overrides` returns them.

    Raises:
        InvalidDataset: an object has no attribute.
    """
    chosen = dict(zip(*(overrides[k].to_pylist() for k in ("object_id", "attribute")), strict=True))
    rows = zip(
        *(attributes[k].to_pylist() for k in ("split", "is_thing", "object_id")), strict=True
    )
    mine = [key if (name, thing) == (split, True) else None for name, thing, key in rows]
    check_objects(overrides, mine, split)
    old = attributes["attribute"].to_pylist()
    new = [chosen.get(key, value) for key, value in zip(mine, old, strict=True)]
    column = attributes.schema.get_field_index("attribute")
    field = attributes.schema.field(column)
    return attributes.set_column(column, field, pa.array(new, field.type))
