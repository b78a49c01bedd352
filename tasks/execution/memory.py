"""How much memory a step's processes hold."""

import threading
from typing import Self

import psutil

_SECONDS_BETWEEN_LOOKS = 0.5
_FIRST_SECONDS = 0.01
"""Looks are the rarer the longer a process runs, so that short ones are seen too."""


class PeakMemory:
    """Samples the resident memory of a process and all that it started.

    Attributes:
        bytes: the most so far.
    """

    def __init__(self, pid: int):
        self.bytes = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        seconds = _FIRST_SECONDS
        while True:
            self.bytes = max(self.bytes, _resident_bytes(self._pid))
            if self._done.wait(seconds):
                return
            seconds = min(2 * seconds, _SECONDS_BETWEEN_LOOKS)


def _resident_bytes(pid: int) -> int:
    total = 0
    try:
        process = psutil.Process(pid)
        for item in (process, *process.children(recursive=True)):
            total += item.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile
    return total
