"""How fast a core is at what models consist of; a second's measurement."""

import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.passes import Speed

_SECONDS = 0.4
"""For which each is repeated; the fastest counts, so that others on the machine matter little."""

_CHANNELS, _SIDE = 64, 16
_VALUES, _TENSORS = 1 << 17, 64
"""Float32 of half a megabyte, as the demo's activations have, and more of them than a core's caches hold."""

_CHAIN = 50


def measured_speed() -> Speed:
    """Measure one core in full precision."""
    torch.set_num_threads(1)
    convolution = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1).to(
        memory_format=torch.channels_last
    )
    image = torch.randn(1, _CHANNELS, _SIDE, _SIDE).to(memory_format=torch.channels_last)
    operands = cycle([torch.ones(_VALUES) for _ in range(_TENSORS)])
    one = torch.ones(1, requires_grad=True)

    def convolve() -> None:
        convolution(image.requires_grad_()).sum().backward()

    def call() -> None:
        value = one
        for _ in range(_CHAIN):
            value = value * 1.0
        value.backward()  # type: ignore[no-untyped-call]  # likewise

    def add() -> None:
        next(operands) + next(operands)

    return Speed(
        flops=flops_per_second(convolve),
        bytes=3 * next(operands).nbytes / _best(add),
        kernel=_best(call) / (2 * _CHAIN),
    )


def flops_per_second(run: Callable[[], object]) -> float:
    """Speed of what a function computes, the best of several times."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / _best(run)


def _best(run: Callable[[], object]) -> float:
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best
