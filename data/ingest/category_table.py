"""The categories of all files of a data set."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from data.coco.files import CocoCategory
from data.coco.records import Offence, SpanJob, map_spans
from data.coco.stream import CocoIndex
from data.errors import InvalidDataset
from data.ingest.image_checks import is_unicode
from data.ingest.refusals import Refusals
from data.vocabulary.splits import Split
from data.vocabulary.tables import CATEGORIES
from data.workers import Workers


class CategoryTable:
    """Categories by id; an id must mean the same in every file."""

    def __init__(self, refusals: Refusals):
        self._refusals = refusals
        self._rows: dict[int, dict[str, Any]] = {}
        self._things_by_split: dict[Split, set[int]] = {}

    def add(
        self, index: CocoIndex, split: Split, *, is_thing: bool
    ) -> tuple[np.ndarray, frozenset[int]]:
        """Add a file's things, or its stuff.

        Returns:
            Their ids, int64 (num_categories,), and those of things in a file of stuff, which are not
            added.

        Raises:
            InvalidDataset: an id means something else in another file.
        """
        ids: set[int] = set()
        things: set[int] = set()
        for items, malformed in map_spans(index, "categories", _decode, Workers(None)):
            self._refusals.add_all((reason, f"{split}/{item}") for reason, item in malformed)
            for item in items:
                if item.id in ids | things:
                    self._refusals.add("duplicate category id", f"{split}/{item.id}")
                elif not is_unicode(f"{item.name}{item.supercategory or ''}"):
                    self._refusals.add("category name is not UTF-8", f"{split}/{item.id}")
                elif is_thing and not item.name.strip():
                    self._refusals.add("category without a name", f"{split}/{item.id}")
                elif item.isthing and not is_thing:
                    things.add(item.id)
                else:
                    ids.add(item.id)
                    self._add(item, index, is_thing=is_thing)
        if is_thing:
            self._things_by_split.setdefault(split, set()).update(ids)
        return np.array(sorted(ids), np.int64), frozenset(things)

    def _add(self, item: CocoCategory, index: CocoIndex, *, is_thing: bool) -> None:
        row = {
            "category_id": item.id,
            "name": item.name,
            "supercategory": item.supercategory or "",
            "is_thing": is_thing,
        }
        known = self._rows.setdefault(item.id, row)
        if (known["name"], known["is_thing"]) != (item.name, is_thing):
            kind = "thing" if known["is_thing"] else "stuff"
            raise InvalidDataset(
                f"{index.path}: category {item.id} is {item.name!r} here and the {kind} "
                f"{known['name']!r} in another file of the data set"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def table(self) -> pa.Table:
        """Table with schema `CATEGORIES`."""
        return pa.Table.from_pylist(list(self._rows.values()), schema=CATEGORIES)

    def warnings(self) -> Iterator[str]:
        """What a user should know: prompts and pages tell things apart by their names."""
        ids: dict[str, list[int]] = {}
        for row in self._rows.values():
            if row["is_thing"]:
                ids.setdefault(row["name"], []).append(row["category_id"])
        for name, same in ids.items():
            if len(same) > 1:
                yield f"things {same} are all called {name!r}: prompts cannot tell them apart"

    def check_common(self) -> None:
        """Refuse splits that have no thing class in common.

        Raises:
            InvalidDataset: they have none.
        """
        splits = list(self._things_by_split.items())
        if splits and not set.intersection(*(ids for _, ids in splits)):
            listed = "; ".join(f"{name} has {sorted(ids)[:5]}" for name, ids in splits)
            raise InvalidDataset(f"the splits have no category id in common: {listed}")


def _decode(_: None, job: SpanJob) -> tuple[list[CocoCategory], list[Offence]]:
    return job.decode(CocoCategory)
