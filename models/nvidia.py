"""What NVIDIA's driver says of GPUs. Light: it is asked by its command, and no library is loaded."""

import math
import subprocess
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

_SECONDS_TO_ANSWER = 10


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        uuid: one for all processes of the host, whatever they call the GPU.
        model: what people call it.
        memory: bytes; infinite where the driver does not say.
    """

    uuid: str
    model: str
    memory: float


def known_gpus(names: Collection[str]) -> dict[str, Gpu]:
    """GPUs by what `CUDA_VISIBLE_DEVICES` calls them; only those that the driver knows by it.

    None are where there is no driver, and parts of GPUs (`MIG-…`) are none.
    """
    columns = "index,uuid,memory.total,name"
    command = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.check_output(  # noqa: S603  # fixed arguments
            command, text=True, stderr=subprocess.DEVNULL, timeout=_SECONDS_TO_ANSWER
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for line in said.splitlines():
        index, uuid, size, model = (part.strip() for part in line.split(",", 3))
        memory = math.inf
        with suppress(ValueError):
            memory = float(size) * 2**20
        for name in names:
            if name == index or (name.startswith("GPU-") and uuid.startswith(name)):
                found[name] = Gpu(uuid, model, memory)
    return found
