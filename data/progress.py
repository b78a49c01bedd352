"""How long work tells what it has done."""

import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with units done, units in total, and what they are or how it stands."""

SECONDS_BETWEEN_REPORTS = 1.0


class Seldom:
    """Progress that is passed on at most once a second, the last report of a count always."""

    def __init__(self, report: Progress):
        self._report = report
        self._last = 0.0

    def __call__(self, done: int, total: int, status: str) -> None:
        """Pass it on if it is time."""
        now = time.monotonic()
        if done >= total or now - self._last >= SECONDS_BETWEEN_REPORTS:
            self._last = now
            self._report(done, total, status)


def silent(done: int, total: int, status: str) -> None:
    """Tell nobody."""
