"""An account of what a data set's files held that could not be used."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Refusals:
    """What was left out or mended: reason to the ids concerned, as `split/id`."""

    by_reason: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, *items: str) -> None:
        """Account for records."""
        self.by_reason[reason].extend(items)

    def add_all(self, found: Iterable[tuple[str, str]]) -> None:
        """Account for pairs of reason and record."""
        for reason, item in found:
            self.add(reason, item)

    def rows(self, num_examples: int = 5) -> list[dict[str, Any]]:
        """One row per reason: count and the first offenders."""
        return [
            {"reason": reason, "count": len(items), "first": ", ".join(items[:num_examples])}
            for reason, items in self.by_reason.items()
        ]

    def __str__(self) -> str:
        """All reasons in one line, for messages."""
        return "; ".join(
            f"{row['count']} × {row['reason']} ({row['first']})" for row in self.rows()
        )

    @property
    def total(self) -> int:
        """Number of records concerned."""
        return sum(map(len, self.by_reason.values()))
