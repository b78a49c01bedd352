"""Sharing the machine's cores and GPUs between steps that run side by side."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data.artifacts.store import holder, sign
from models.nvidia import Gpu, known_gpus

HOST_LOCKS = Path("/tmp/detdiffusion-gpus")  # noqa: S108  # of all users, whatever their TMPDIR

_SECONDS_BETWEEN_LOOKS = 1.0
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
    """Cores and GPUs that steps take and give back; a GPU is that of one run of the host at a time.

    Args:
        locks: folder with a lock for each GPU, which all runs of the host share.
    """

    def __init__(self, num_cores: int, gpus: Sequence[str] = (), locks: Path | None = None):
        self.num_cores = num_cores
        self.gpus = tuple(gpus)
        self._locks = locks or HOST_LOCKS
        self._free_cores = num_cores
        self._free_gpus = set(self.gpus)
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    @contextmanager
    def take(
        self,
        share: float,
        place: int,
        num_gpus: int = 0,
        on_wait: Callable[[str], None] = lambda who: None,
    ) -> Iterator[Part]:
        """Wait for a share of the cores, at least one, and for GPUs; nobody else has them meanwhile.

        Args:
            place: of those that wait the one of the lowest place is served first; not while it waits for
                another run.
            on_wait: called each second while other runs have the GPUs, with who has one of them; what it
                raises ends the waiting.
        """
        wanted = max(int(share * self.num_cores), 1)
        with self._changed:
            self._waiting.append(place)
        time.sleep(_SECONDS_TO_GATHER)
        with ExitStack() as claims:
            part = self._part(wanted, place, num_gpus, claims)
            while isinstance(part, str):
                on_wait(part)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                with self._changed:
                    self._waiting.append(place)
                part = self._part(wanted, place, num_gpus, claims)
            try:
                yield part
            finally:
                claims.close()  # before another step of this run may look
                with self._changed:
                    self._free_cores += wanted
                    self._free_gpus |= set(part.gpus)
                    self._changed.notify_all()

    def _part(self, cores: int, place: int, num_gpus: int, claims: ExitStack) -> Part | str:
        """Wait for one's turn and take a part of the machine; or say which run has its GPUs."""

        def is_free() -> bool:
            return (
                min(self._waiting) == place
                and self._free_cores >= cores
                and len(self._free_gpus) >= num_gpus
            )

        with self._changed:
            try:
                self._changed.wait_for(is_free)
                free = [name for name in self.gpus if name in self._free_gpus]
                claimed, others = self._claimed(free, num_gpus, claims)
                if len(claimed) < num_gpus:
                    claims.close()
                    return others[0]
                self._free_cores -= cores
                self._free_gpus -= set(claimed)
                return Part(cores, tuple(claimed))
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()

    def _claimed(
        self, names: Sequence[str], number: int, claims: ExitStack
    ) -> tuple[list[str], list[str]]:
        """Hold the locks of GPUs that no other run has, as many as are asked for; and who has others."""
        if not number:
            return [], []
        from filelock import FileLock, Timeout  # noqa: PLC0415  # brings asyncio and ssl, which a plan goes without

        claimed: list[str] = []
        others: list[str] = []
        with suppress(OSError):  # another user's: locks are theirs too
            self._locks.mkdir(parents=True, exist_ok=True)
            self._locks.chmod(0o777)
        for name in names:
            gpu = self._known.get(name)
            file = gpu.uuid if gpu else name.replace("/", "_")  # as in MIG-GPU-…/1/0
            lock = FileLock(self._locks / file, mode=0o666, on_acquired=sign)
            try:
                claims.enter_context(lock.acquire(blocking=False))
            except Timeout:
                others.append("another run")
                with suppress(OSError):
                    others[-1] = holder(lock)
            except OSError:  # where no lock can be, GPUs are shared unseen
                claimed.append(name)
            else:
                claimed.append(name)
            if len(claimed) == number:
                break
        return claimed, others

    @cached_property
    def _known(self) -> Mapping[str, Gpu]:
        """Of the GPUs those that the driver knows: runs may call one of them by several names."""
        return known_gpus(self.gpus)
