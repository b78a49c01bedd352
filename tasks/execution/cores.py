"""Sharing the machine's cores between steps that run side by side."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS_TO_GATHER = 0.3
"""Steps that become ready together ask one after the other; by then all have asked."""


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Cores:
    """Cores that steps take and give back."""

    def __init__(self, count: int):
        self.count = count
        self._free = count
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    @contextmanager
    def take(self, share: float, place: int) -> Iterator[int]:
        """Wait for a share of the cores, at least one; yields how many.

        Args:
            place: of those that wait the one of the lowest place is served first.
        """
        wanted = max(int(share * self.count), 1)
        with self._changed:
            self._waiting.append(place)
        time.sleep(_SECONDS_TO_GATHER)
        with self._changed:
            self._changed.wait_for(lambda: min(self._waiting) == place and self._free >= wanted)
            self._waiting.remove(place)
            self._free -= wanted
            self._changed.notify_all()
        try:
            yield wanted
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()
