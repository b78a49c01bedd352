"""Sharing the machine's cores between steps that run side by side."""

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def has_gpu() -> bool:
    """Whether this machine shows a GPU of NVIDIA's or AMD's; no library is asked."""
    return any(next(Path("/dev").glob(name), None) for name in ("nvidia[0-9]*", "kfd"))


class Cores:
    """Cores that steps take and give back; who asks first is served first."""

    def __init__(self, count: int):
        self.count = count
        self._free = count
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, share: float) -> Iterator[int]:
        """Wait for a share of the cores, at least one; yields how many."""
        wanted = max(int(share * self.count), 1)
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._free >= wanted)
            self._queue.popleft()
            self._free -= wanted
            self._changed.notify_all()
        try:
            yield wanted
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()
