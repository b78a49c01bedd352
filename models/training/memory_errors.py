"""What a user is told where a device has too little memory for the generator's training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data.errors import OutOfMemory
from models.devices import default_device
from models.generator.options import GeneratorConfig
from models.training.state import TrainingState


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
