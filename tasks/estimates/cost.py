"""What a run takes in time, memory and disk, on a machine that need not be this one.

Each device turns work into seconds by few rates. Those of a GPU are data sheets times shares, which were
measured on one (docs/gpu.md) where it does not say otherwise. Those of a CPU are measured on it, or assumed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from models.passes import Speed
from tasks.estimates.rates import START_SECONDS
from tasks.estimates.work import Work
from tasks.execution.graph import Step

HALF_PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100 NVL": 836e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 6000 Ada": 364e12,
    "RTX 5000 Ada": 261e12,
    "RTX A6000": 155e12,
    "RTX A5000": 111e12,
    "RTX A4000": 77e12,
    "RTX 5090": 209e12,
    "RTX 5080": 113e12,
    "RTX 5070 Ti": 88e12,
    "RTX 5070": 62e12,
    "RTX 4090": 165e12,
    "RTX 4080 SUPER": 104e12,
    "RTX 4080": 97e12,
    "RTX 4070 Ti SUPER": 88e12,
    "RTX 4070 Ti": 80e12,
    "RTX 4070 SUPER": 71e12,
    "RTX 4070": 58e12,
    "RTX 4060 Ti": 44e12,
    "RTX 4060": 30e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
    "RTX 3080 Ti": 68e12,
}
"""FLOP/s of half-precision matrix products without sparsity, by a part of the device's name: data sheets.

Of GeForce cards those that are added up in single precision, as PyTorch adds them. A name stands behind those
that it is a part of.
"""

_SLOWER = re.compile(r"Laptop|Max-Q|Mobile|\bD\b", re.IGNORECASE)
"""In names of devices that share the rest of it with a faster one."""

_H100_BF16 = HALF_PEAKS["H100"]
"""Of the H100 SXM."""

_H100_TF32 = 494e12
"""Of TF32 ones, in which PyTorch convolves float32; the same."""

_H100_FP32 = 67e12
"""Of float32, in which features are computed; the same."""

_H100_SPEED = {
    "train-generator": 0.19 * _H100_BF16,
    "synthesize": 0.22 * _H100_BF16,
    "train-detector": 0.06 * _H100_TF32,
    "detect": 0.066 * _H100_TF32,
    "image-features": 0.30 * _H100_FP32,
}
"""FLOP/s that a kind of step reaches, what is bound by memory included: shares of the peak.

Of Stable Diffusion v1.5 at 512 pixels, 32 images trained on and 8 to 32 drawn at once, and of Faster R-CNN, 8
at once; of features an assumption.
"""

_H100_SECONDS_PER_KERNEL = 8e-6
"""For PyTorch to launch an operator from Python; while the GPU works others are launched.

Training on 8 images at 512 pixels, which is bound by it, took 203 ms a step.
"""

_GPU_START_SECONDS = 5.0
"""More that a step's process takes beside a GPU, for CUDA's context. An assumption."""

_CORES_OF_A_GPU = 16
"""That read images for it. An assumption: 8 GPUs and 128 cores are usual."""

_ROUNDING = 1e-9
"""Of shares that add up to one."""

_EFFICIENCY = 0.9
"""Of a training that several GPUs share, one against another. An assumption."""


class Device(Protocol):
    """What turns work into time."""

    def seconds(self, step: Step, work: Work) -> float:
        """That a step takes."""

    def share(self, step: Step) -> float:
        """Part of all of the machine that a step has meanwhile."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """A machine of GPUs; a step has as many of them as its options say.

    Attributes:
        speed: of each, in H100s.
    """

    count: int
    speed: float = 1.0

    def seconds(self, step: Step, work: Work) -> float:
        """Operations at an assumed share of the peak, or launching them, and what the cores do."""
        count = self._used(step)
        speed = _H100_SPEED.get(step.kind.name)
        of_flops = work.flops / (speed * self.speed) if speed else 0.0
        of_launches = work.kernels * _H100_SECONDS_PER_KERNEL
        parallel = 1 + (count - 1) * _EFFICIENCY
        on_gpu = max(of_flops / parallel, of_launches)
        on_cores = work.core_seconds / (_CORES_OF_A_GPU * count)
        start = START_SECONDS + (_GPU_START_SECONDS if step.kind.preload else 0)
        return start + on_gpu + on_cores

    def gpu_seconds(self, step: Step, work: Work) -> float:
        """GPUs times seconds; none where no model is worked with."""
        return self._used(step) * self.seconds(step, work) if step.kind.preload else 0.0

    def share(self, step: Step) -> float:
        """Of the GPUs, or of the cores where it needs none."""
        return self._used(step) / self.count if step.kind.preload else step.kind.share

    def _used(self, step: Step) -> int:
        return min(max(step.options.num_gpus, 1), self.count)


def half_peak(name: str) -> float | None:
    """The peak of a device, as CUDA or its driver calls it; None where it is not known.

    >>> half_peak("NVIDIA GeForce RTX 4090") / 1e12
    165.0
    >>> half_peak("T400 4GB") is half_peak("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    True
    """
    if _SLOWER.search(name):
        return None
    return next(
        (peak for part, peak in HALF_PEAKS.items() if re.search(rf"\b{part}\b", name)), None
    )


def relative_speed(names: Iterable[str]) -> float | None:
    """The slowest of some devices in H100s, by their peaks; None where one is not known, or there is none."""
    peaks = [half_peak(name) for name in names]
    known = [peak for peak in peaks if peak]
    return min(known) / _H100_BF16 if known and len(known) == len(peaks) else None


ASSUMED_CORE = Speed(flops=60e9, bytes=15e9, kernel=8e-6)
"""A core with AVX-512 and without matrix units, of which the demo took as long as with these rates."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """A machine without a GPU."""

    num_cores: int
    core: Speed

    def seconds(self, step: Step, work: Work) -> float:
        """Operations, memory and calls one after the other, and what no model does."""
        cores = max(int(step.kind.share * self.num_cores), 1)
        computed = work.flops / self.core.flops + work.memory_traffic / self.core.bytes
        return (
            START_SECONDS + (computed + work.core_seconds) / cores + work.kernels * self.core.kernel
        )

    def share(self, step: Step) -> float:
        """Of the cores."""
        return max(int(step.kind.share * self.num_cores), 1) / self.num_cores


@dataclass(frozen=True, slots=True)
class Schedule:
    """When steps that run side by side are done.

    Attributes:
        seconds: from the first to the last.
        memory: bytes at the peak, of all that run at once.
    """

    seconds: float
    memory: float


def schedule(steps: Iterable[Step], works: Mapping[str, Work], device: Device) -> Schedule:
    """Let every step begin when its inputs are there and its share is free, those before it first.

    Args:
        steps: those to be made, each after its inputs.
        works: by reference, of at least these steps.
    """
    waiting = [step for step in steps if step.identity.reference in works]
    left = {step.identity.reference for step in waiting}
    running: list[tuple[float, Step]] = []
    now = peak = 0.0
    while waiting or running:
        for step in list(waiting):
            taken = sum(device.share(item) for _, item in running)
            ready = not any(item.identity.reference in left for item in step.inputs.values())
            if ready and taken + device.share(step) <= 1 + _ROUNDING:
                ends = now + device.seconds(step, works[step.identity.reference])
                running.append((ends, step))
                waiting.remove(step)
        held = sum(works[step.identity.reference].memory for _, step in running)
        peak = max(peak, held)
        now = min(ends for ends, _ in running)
        left -= {step.identity.reference for ends, step in running if ends <= now}
        running = [(ends, step) for ends, step in running if ends > now]
    return Schedule(now, peak)
