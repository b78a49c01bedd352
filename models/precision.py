"""The precisions that models run in. Light: imports no torch."""

import os
from pathlib import Path
from typing import Literal

from data.errors import InvalidConfig

Precision = Literal["auto", "no", "bf16", "fp16"]

PRECISION_HELP = (
    "Of matrix products; auto: bf16 where the hardware multiplies it, else fp16 on a GPU and full on a CPU. "
    "Part of the key as it is written: which one auto came to stands in the manifest, and a step goes on in "
    "the one it began with."
)


def has_gpu() -> bool:
    """Whether this process may see a GPU of NVIDIA's or AMD's; no library is asked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(next(Path("/dev").glob(name), None) for name in ("nvidia[0-9]*", "kfd", "dxg"))


def require_gpu(option: str, precision: Precision) -> None:
    """Refuse a precision before anything is trained.

    Raises:
        InvalidConfig: there is no GPU, which it needs.
    """
    if not has_gpu():
        raise InvalidConfig(f"{option}={precision} needs a GPU, and there is none")
