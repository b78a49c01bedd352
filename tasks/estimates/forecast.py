"""What a run will take of this machine, said before anything runs."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from data.artifacts.digests import DigestMemory
from models.counts import known_counts
from models.nvidia import Gpu, known_gpus
from models.precision import visible_gpus
from tasks.estimates.cost import ASSUMED_CORE, Cpu, Device, Gpus, relative_speed, schedule
from tasks.estimates.data_size import data_sizes
from tasks.estimates.work import Facts, work_of
from tasks.execution.graph import Graph, Step
from tasks.execution.machine import available_cores

_NAMES_SHOWN = 4
"""Of steps that are not among the numbers."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the steps that are to be made take, roughly.

    Attributes:
        num_steps: of them.
        machine: for people.
        is_known: whether its speed is.
        seconds: from the first to the last, side by side.
        memory: bytes at the peak; None where models are on a GPU.
        gpu_memory: bytes of each GPU that the generator's training needs at least; 0 where it is none's.
        gpu_there: bytes that the smallest GPU has; infinite where that is not known.
        disk: bytes of artifacts, and of the largest work folder.
        unknown: names of steps that are not among these numbers, for their model was not counted, or
            their kind has no formula.
    """

    num_steps: int
    machine: str
    is_known: bool
    seconds: float
    memory: float | None
    gpu_memory: float
    gpu_there: float
    disk: float
    unknown: tuple[str, ...]

    def shortages(self, root: Path) -> Iterator[str]:
        """What this machine has too little of now.

        Args:
            root: of the store.
        """
        free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
        if self.disk > free:
            yield (
                f"what is to be made takes about {_gb(self.disk)} of disk, and under {root} {_gb(free)} are "
                f"free, {_gb(self.disk - free)} too few: set DETDIFFUSION_HOME to a folder of a larger one, "
                "or make room (`detdiffusion gc`)"
            )
        available = psutil.virtual_memory().available
        if self.memory is not None and self.memory > available:
            yield (
                f"what is to be made holds about {_gb(self.memory)} of memory at once, and {_gb(available)} "
                f"are available, {_gb(self.memory - available)} too few: end other programs, or run stage by "
                "stage (`--stage`)"
            )
        if self.gpu_memory > self.gpu_there:
            yield (
                f"the generator's training needs {_gb(self.gpu_memory)} of a GPU's memory at least, and "
                f"there are {_gb(self.gpu_there)}: `detdiffusion plan PRESET --memory` says what takes less"
            )

    def __str__(self) -> str:
        least = "at least " if self.unknown or not self.is_known else ""
        parts = [f"{least}{duration(self.seconds)} on {self.machine}"]
        parts += [] if self.memory is None else [f"{_gb(self.memory)} of memory"]
        parts += [f"from {_gb(self.gpu_memory)} of a GPU's memory"] if self.gpu_memory else []
        parts += [f"{_gb(self.disk)} of disk"]
        text = f"{self.num_steps} steps to be made, roughly: {', '.join(parts)}"
        if self.unknown:
            among = "among them " if len(self.unknown) > _NAMES_SHOWN else ""
            text += (
                f", without {len(self.unknown)} of these steps, {among}"
                f"{', '.join(self.unknown[:_NAMES_SHOWN])}: `detdiffusion cost PRESET …` counts them"
            )
        return text


def forecast(graph: Graph, steps: Sequence[Step], digests: DigestMemory) -> Forecast:
    """Estimate steps that are to be made, from counts that are known and rates that are assumed.

    Args:
        graph: that they are of.
        digests: remember what files say.
    """
    facts = Facts(data_sizes(graph, digests, given=True), known_counts())
    found = {step.identity.reference: work_of(step, facts) for step in steps}
    works = {reference: work for reference, work in found.items() if work}
    gpus = visible_gpus()
    known = known_gpus(gpus) if gpus else {}
    device: Device = _device(gpus, known) if gpus else Cpu(available_cores(), ASSUMED_CORE)
    planned = schedule(steps, works, device)
    return Forecast(
        num_steps=len(steps),
        machine=_gpus_in_words(gpus, known) if gpus else f"{available_cores()} cores",
        is_known=not gpus or _relative_speed(gpus, known) is not None,
        seconds=planned.seconds,
        memory=None if gpus else planned.memory,
        gpu_memory=max((w.least_gpu_memory for w in works.values()), default=0) if gpus else 0,
        gpu_there=min((gpu.memory for gpu in known.values()), default=math.inf),
        disk=sum(w.stored for w in works.values())
        + max((w.scratch for w in works.values()), default=0),
        unknown=tuple(s.name for s in steps if s.identity.reference not in works),
    )


def duration(seconds: float) -> str:
    """A length of time.

    >>> duration(35), duration(600), duration(9000), duration(400000), duration(2e8)
    ('35 s', '10 min', '2.5 h', '111 h', '55,600 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    hours = f"{seconds / 3600:.3g}"
    return f"{hours} h" if float(hours) < 1000 else f"{float(hours):,.0f} h"


def gpus_here() -> Gpus:
    """The GPUs that this process sees, each as fast as the slowest of them; unknown ones as an H100."""
    names = visible_gpus()
    return _device(names, known_gpus(names))


def _device(names: Sequence[str], known: Mapping[str, Gpu]) -> Gpus:
    return Gpus(len(names), _relative_speed(names, known) or 1.0)


def _relative_speed(names: Sequence[str], known: Mapping[str, Gpu]) -> float | None:
    return relative_speed(known[name].model if name in known else "" for name in names)


def _gpus_in_words(names: Sequence[str], known: Mapping[str, Gpu]) -> str:
    models = ", ".join(sorted({gpu.model for gpu in known.values()})) or "unknown"
    taken = "" if _relative_speed(names, known) else "; not known: as if an H100"
    return f"{len(names)} GPU{'s' if len(names) > 1 else ''} ({models}{taken})"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
