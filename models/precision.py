"""The precisions that models run in. Light: imports no torch."""

import os
from itertools import takewhile
from pathlib import Path
from typing import Literal

from data.errors import InvalidConfig

Precision = Literal["auto", "no", "bf16", "fp16"]

PRECISION_HELP = (
    "Of matrix products; auto: bf16 where the hardware multiplies it, else fp16 on a GPU and full on a CPU. "
    "Part of the key as it is written: which one auto came to stands in the manifest, and a step goes on in "
    "the one it began with."
)


def visible_gpus(files: Path = Path("/dev")) -> tuple[str, ...]:
    """GPUs that this process may see, as `CUDA_VISIBLE_DEVICES` calls them; no library is asked.

    How many there are of AMD's, or under WSL, no file tells: unless the variable does, they count as one.
    """
    count = len(list(files.glob("nvidia[0-9]*")))
    if not count and not any((files / name).exists() for name in ("kfd", "dxg")):
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(map(str, range(count or 1)))

    def exists(name: str) -> bool:
        return name not in ("", "-1") and not (count and name.isdigit() and int(name) >= count)

    return tuple(takewhile(exists, map(str.strip, named.split(","))))  # as CUDA reads it


def has_gpu() -> bool:
    """Whether this process may see a GPU of NVIDIA's or AMD's."""
    return bool(visible_gpus())


def require_gpu(option: str, value: str) -> None:
    """Refuse an option's value before anything is trained.

    Raises:
        InvalidConfig: there is no GPU, which it needs.
    """
    if not has_gpu():
        raise InvalidConfig(f"{option}={value} needs a GPU, and there is none")
