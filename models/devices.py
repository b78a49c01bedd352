"""Where to run, and in which precision."""

import gc
import resource
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.artifacts.store import durable_file
from models.precision import Precision


def default_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision) -> Precision:
    """Turn `auto` into `bf16` where the hardware multiplies bfloat16 matrices.

    Else into `fp16` on a GPU (V100, T4), and into `no` on a CPU.
    """
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "no"  # noqa: SLF001  # no public name


def settled_precision(work: Path, precision: Precision) -> Precision:
    """What `auto` comes to where a piece of work was begun, noted in its folder.

    It goes on in that precision on whatever hardware it is taken up again.
    """
    note = work / "precision.txt"
    if not note.exists():
        with durable_file(note) as file:
            file.write(resolve_precision(precision).encode())
    return cast("Precision", note.read_text())


def autocast(precision: Precision) -> torch.autocast:
    """Context in which matrix products run in a precision."""
    resolved = resolve_precision(precision)
    dtype = torch.float16 if resolved == "fp16" else torch.bfloat16
    return torch.autocast(default_device().type, dtype, enabled=resolved != "no")


def attention_kernel() -> AbstractContextManager[None]:
    """Context for attention that is trained: on a CPU the plain kernel.

    The flash kernel's backward pass in bfloat16 is slow there: with it a demo step's passes took 137 ms
    instead of 121 (one thread, `benchmarks/train_step.py`'s modules).
    """
    if default_device().type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def release_memory() -> None:
    """Give a GPU's memory that is no longer used back to others."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_bytes() -> int:
    """Most memory in use so far: on the CUDA device, or resident in this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
