"""An account of what a data set's files held that could not be used."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from data.ingest.table_writer import TableWriter
from data.vocabulary.tables import REFUSED

NUM_EXAMPLES = 5
"""Records that are named where a reason is summarised."""


def reasons(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What `Refusals.rows` has, for people."""
    return [f"{row['count']} × {row['reason']} ({row['first']})" for row in rows]


class Refusals:
    """What was left out or mended: counted by reason, and named in a table with schema `REFUSED`."""

    def __init__(self, table: TableWriter):
        self._table = table
        self._counts: Counter[str] = Counter()
        self._first: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, *records: str) -> None:
        """Account for records, each named `split/id`."""
        self._counts[reason] += len(records)
        self._first[reason].extend(records[: NUM_EXAMPLES - len(self._first[reason])])
        columns = [pa.repeat(reason, len(records)), pa.array(records, pa.string())]
        self._table.write(pa.RecordBatch.from_arrays(columns, schema=REFUSED))

    def add_all(self, found: Iterable[tuple[str, str]]) -> None:
        """Account for pairs of reason and record."""
        by_reason = defaultdict(list)
        for reason, record in found:
            by_reason[reason].append(record)
        for reason, records in by_reason.items():
            self.add(reason, *records)

    def rows(self) -> list[dict[str, Any]]:
        """One row per reason: count and the first offenders."""
        return [
            {"reason": reason, "count": count, "first": ", ".join(self._first[reason])}
            for reason, count in self._counts.items()
        ]

    def __str__(self) -> str:
        """All reasons in one line, for messages."""
        return "; ".join(reasons(self.rows()))

    def count(self, reason: str) -> int:
        """Number of records of a reason."""
        return self._counts[reason]

    @property
    def total(self) -> int:
        """Number of records concerned."""
        return self._counts.total()
