"""What a user is told where a device has too little memory for the generator's training."""

from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from data.errors import OutOfMemory
from models.devices import default_device
from models.generator.options import GeneratorConfig
from models.training.state import TrainingState

THRIFTY: dict[str, dict[str, Any]] = {
    "lora_rank=16": {"lora_rank": 16},
    "optimizer=adamw-8bit": {"optimizer": "adamw-8bit"},
    "ema_decay=null": {"ema_decay": None},
}
"""Options with which the training needs less, for another result."""

Least = Callable[[GeneratorConfig], int]
"""What counts the bytes that a training needs at least."""

_OPEN = ("gradient_accumulation_steps", "gradient_checkpointing")
"""Options that are `auto` where nothing is given, and that the result does not depend on."""


def sufficient(config: GeneratorConfig, memory: int, least: Least) -> dict[str, GeneratorConfig]:
    """The options of `THRIFTY` with which a training fits, each alone, else all that help together.

    Args:
        memory: of the device, bytes.
    """
    changed = {option: config.model_copy(update=changes) for option, changes in THRIFTY.items()}
    alone = {option: item for option, item in changed.items() if least(item) <= memory}
    together = _together(config, least)
    return alone or {option: item for option, item in together.items() if least(item) <= memory}


def _together(config: GeneratorConfig, least: Least) -> dict[str, GeneratorConfig]:
    """A training with all options of `THRIFTY` with which it needs less; empty where there are none."""
    less = {
        option: changes
        for option, changes in THRIFTY.items()
        if least(config.model_copy(update=changes)) < least(config)
    }
    changed = config.model_copy(update=dict(ChainMap(*less.values())))
    return {" and ".join(less): changed} if less else {}


def too_small(config: GeneratorConfig, memory: int, least: Least) -> OutOfMemory:
    """Error of a device that a training does not fit into, with the options with which it does.

    Args:
        memory: of the device, bytes.
    """
    given = [name for name in _OPEN if getattr(config, name) != "auto"]
    opened = config.model_copy(update=dict.fromkeys(given, "auto"))
    advice = _advice([f"{name}=auto" for name in given], opened, memory, least)
    return OutOfMemory(
        f"the generator's training needs at least {_gigabytes(least(config))} on its device, which has "
        f"{_gigabytes(memory)}. {advice}"
    )


def _advice(opened: list[str], config: GeneratorConfig, memory: int, least: Least) -> str:
    """Name the options with which a training fits, those that are opened first; else the least it needs."""
    if least(config) <= memory:
        return f"It fits, with the same result, with train_generator.{' and '.join(opened)}"
    if options := " or ".join(sufficient(config, memory, least)):
        text = " and ".join([*opened, options])
        return f"It fits, for another result, with train_generator.{text}"
    together = _together(config, least)
    (smallest,) = together.values() or [config]
    named = [*opened, *together]
    text = f"with train_generator.{' and '.join(named)}" if named else "as it is"
    return (
        f"No option makes it fit: the least is {_gigabytes(least(smallest))}, {text}. Take a larger "
        "device, or a lower resolution"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


@contextmanager
def memory_errors(config: GeneratorConfig, state: TrainingState | None = None) -> Iterator[None]:
    """Say which options need less.

    Args:
        state: of the training; None before its first step.

    Raises:
        OutOfMemory: the device has too little.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = f"step {state.step}" if state else "before the first step"
        raise OutOfMemory(
            f"{where}: the memory of {default_device()} does not suffice. {' '.join(_to_need_less(config))}"
        ) from error


def _to_need_less(config: GeneratorConfig) -> Iterator[str]:
    """Which options of the generator's training need less memory than they do."""
    same = [] if config.gradient_checkpointing is True else ["gradient_checkpointing=true"]
    if (parts := _more_parts(config)) > config.num_parts:
        same.append(f"gradient_accumulation_steps={parts} (now {config.num_parts})")
    drawn = config.probe.sampling.batch_size
    if config.probe.interval and drawn > 1:
        same.append(f"if it was a probe, probe.sampling.batch_size={drawn // 2} (now {drawn})")
    other = [] if config.lora_rank else ["lora_rank=16 (at lora_learning_rate)"]
    other += ["optimizer=adamw-8bit"] if config.optimizer == "adamw" else []
    for options, result in ((same, "the same result"), (other, "another result")):
        if options:
            yield f"Of train_generator's options, these need less and give {result}: {', '.join(options)}."


def _more_parts(config: GeneratorConfig) -> int:
    """The next number of parts, about twice as many, that a process' share of a batch can be cut into."""
    share, least = config.batch_size // config.num_processes, 2 * config.num_parts
    return next((n for n in range(least, share) if share % n == 0), share)
