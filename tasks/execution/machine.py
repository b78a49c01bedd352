"""Sharing the machine's cores and GPUs between steps that run side by side."""

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SECONDS_TO_GATHER = 0.3
"""Steps that become ready together ask one after the other; by then all have asked."""


def available_cores(
    membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """CPU cores that this process may use: those it may run on, and no more than a container's quota.

    Args:
        membership: lists the control groups of this process.
        groups: where control groups are mounted; in a container its own is at the top.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return cores
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if not controllers:
            quotas = _quotas(groups, name, ["cpu.max"])
        elif "cpu" in controllers.split(","):
            quotas = _quotas(groups / "cpu", name, ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
        else:
            continue
        cores = min([cores, *quotas])
    return cores


def _quotas(mount: Path, group: str, names: Sequence[str]) -> Iterator[int]:
    """Cores that a control group and those that it is in leave, at least one.

    Args:
        names: of the files that say how many microseconds in how many; a word or -1: no quota.
    """
    folder = mount / group.strip("/")
    for place in (folder, *folder.parents):
        if place.is_relative_to(mount) and (place / names[0]).is_file():
            text = " ".join((place / name).read_text() for name in names)
            quota, period = text.split()
            if quota.isdecimal():
                yield max(math.ceil(int(quota) / int(period)), 1)


@dataclass(frozen=True, slots=True)
class Part:
    """What a step has of the machine: a number of cores, and GPUs by name."""

    cores: int
    gpus: tuple[str, ...]


class Machine:
    """Cores and GPUs that steps take and give back."""

    def __init__(self, num_cores: int, gpus: Sequence[str] = ()):
        self.num_cores = num_cores
        self.gpus = tuple(gpus)
        self._free_cores = num_cores
        self._free_gpus = set(self.gpus)
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    @contextmanager
    def take(self, share: float, place: int, num_gpus: int = 0) -> Iterator[Part]:
        """Wait for a share of the cores, at least one, and for GPUs; nobody else has them meanwhile.

        Args:
            place: of those that wait the one of the lowest place is served first.
        """
        wanted = max(int(share * self.num_cores), 1)
        with self._changed:
            self._waiting.append(place)
        time.sleep(_SECONDS_TO_GATHER)
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    min(self._waiting) == place
                    and self._free_cores >= wanted
                    and len(self._free_gpus) >= num_gpus
                )
            )
            self._waiting.remove(place)
            free = [name for name in self.gpus if name in self._free_gpus]
            part = Part(wanted, tuple(free[:num_gpus]))
            self._free_cores -= wanted
            self._free_gpus -= set(part.gpus)
            self._changed.notify_all()
        try:
            yield part
        finally:
            with self._changed:
                self._free_cores += wanted
                self._free_gpus |= set(part.gpus)
                self._changed.notify_all()
