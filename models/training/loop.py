"""Training the generator: one loop, on one process or several, that goes on after a kill."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data.errors import OutOfMemory, TrainingDiverged
from models.devices import (
    attention_kernel,
    default_device,
    peak_memory_bytes,
    release_memory,
)
from models.generator.modules import Generator
from models.generator.options import GeneratorConfig
from models.newest_checkpoint import newest_checkpoint
from models.training.batches import Batch, make_batches
from models.training.losses import (
    denoising_loss,
    foreground_weights,
    mask_iou,
    min_snr_weights,
    perception_loss,
)
from models.training.metrics_file import METRICS_NAME, Metrics, truncate_metrics
from models.training.state import (
    TrainingState,
    checkpoints,
    clip_gradients,
    load_checkpoint,
    merge_adapters,
    new_state,
    save_checkpoint,
)
from models.training.training_set import TrainingSet

logger = logging.getLogger(__name__)

_DIVERGED_LOSS = 100.0
"""Predicting zero costs about 1."""


def compute_losses(
    state: TrainingState, config: GeneratorConfig, batch: Batch
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """L = L_ldm + λ L_p of one batch, and its parts."""
    scheduler = state.generator.model.noise_scheduler
    alphas_cumprod = scheduler.alphas_cumprod.to(batch.latents.device)[batch.timesteps]
    prediction, logits = _predict(state, state.model, batch)
    prediction_type = scheduler.config.prediction_type
    target = batch.noise
    if prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    height, width = batch.latents.shape[2:]
    scale = torch.tensor([width, height, width, height], device=batch.latents.device)
    is_foreground = batch.layouts.labels >= 0
    if config.foreground_things_only:
        is_foreground &= batch.layouts.is_thing
    cells = foreground_weights(
        batch.layouts.boxes * scale,
        is_foreground,
        height,
        width,
        config.foreground_weight,
        config.foreground_power,
        config.foreground_overlap,
    )
    sample_weights = torch.ones_like(alphas_cumprod)
    if config.min_snr_gamma is not None:
        sample_weights = min_snr_weights(alphas_cumprod, config.min_snr_gamma, prediction_type)
    loss = denoising_loss(prediction, target, cells, sample_weights)
    parts = {"loss_ldm": loss.detach()}
    if state.modules.head is not None and logits is not None:
        true, valid = _mask_targets(state, batch)
        masks, dice = state.modules.head.losses(logits, true, valid)
        perception = perception_loss(masks, dice, alphas_cumprod)
        loss = loss + config.perception_weight * perception
        parts["loss_mask"], parts["loss_dice"] = masks.detach().mean(), dice.detach().mean()
        parts["loss_perception"] = perception.detach()
        parts["mask_iou"] = mask_iou(state.modules.head.predicted(logits), true, valid)
    return loss, parts | {"loss": loss.detach()}


def _predict(state: TrainingState, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    scheduler = state.generator.model.noise_scheduler
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    inputs = torch.cat([noisy, batch.canvas], dim=1).contiguous(memory_format=torch.channels_last)
    return model(inputs, batch.timesteps, batch.input_ids, batch.token_weights)


def _mask_targets(state: TrainingState, batch: Batch) -> tuple[Tensor, Tensor]:
    in_prompt = batch.token_weights.sum(dim=2) > 0
    masks = batch.masks.float() / 255
    return state.modules.head.targets(masks, batch.layouts.labels, in_prompt)  # type: ignore[union-attr]


@torch.no_grad()
def predict_masks(
    state: TrainingState, batch: Batch
) -> tuple[Bool[Tensor, "batch objects height width"], Float[Tensor, "batch objects height width"]]:
    """Masks of a batch as the perception head sees them, and the true ones.

    Raises:
        ValueError: the training has no perception head.
    """
    logits = _predict(state, state.modules, batch)[1]  # this process alone: not data-parallel
    if state.modules.head is None or logits is None:
        raise ValueError("without perception loss there is no perception head")
    return state.modules.head.predicted(logits), _mask_targets(state, batch)[0]


def train_step(state: TrainingState, config: GeneratorConfig, batches: Sequence[Batch]) -> Metrics:
    """Make one optimiser step in place.

    Args:
        batches: this process' share of the step's batch, in equal parts.

    Raises:
        TrainingDiverged: the loss is NaN, infinite or huge, or the gradients are; the weights are left
            as before the step.
    """
    rows = []
    for batch in batches:
        with state.accelerator.accumulate(state.model), attention_kernel():
            loss, parts = compute_losses(state, config, batch)
            state.accelerator.backward(loss)
            rows.append(torch.stack(list(parts.values())))
    values = state.accelerator.gather(torch.stack(rows))
    metrics = dict(zip(parts, values.nanmean(dim=0).tolist(), strict=True))
    metrics["loss"] = float(values[:, -1].mean())
    if not abs(metrics["loss"]) < _DIVERGED_LOSS:
        _forget_gradients(state)
        raise TrainingDiverged(f"step {state.step}: the loss is {metrics['loss']}")
    norm = _update(state, config)
    metrics |= {"grad_norm": norm, **_rates(state), "step": float(state.step)}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _rates(state: TrainingState) -> Metrics:
    """Of the UNet, and of the text encoder's top where it is trained."""
    rate, *of_text = map(float, state.schedules[0].get_last_lr())
    return {"learning_rate": rate} | ({"text_learning_rate": max(of_text)} if of_text else {})


def _update(state: TrainingState, config: GeneratorConfig) -> float:
    """Clip, step and average; return the norm of the gradients."""
    norm, rows = clip_gradients(state, config.max_grad_norm)
    if not math.isfinite(norm):
        return _skip_update(state, norm)
    if state.average is not None:
        state.average.before_step(rows)
    for optimizer, schedule in zip(state.optimizers, state.schedules, strict=True):
        optimizer.step()
        schedule.step()
    _forget_gradients(state)
    if state.average is not None:
        state.average.after_step(rows)
    state.step += 1
    return norm


def _skip_update(state: TrainingState, norm: float) -> float:
    """Let fp16's loss scaler look for a smaller scale; in any other precision it is a divergence."""
    if state.accelerator.scaler is None:
        _forget_gradients(state)
        raise TrainingDiverged(f"step {state.step}: the norm of the gradients is {norm}")
    state.optimizers[0].step()  # which the scaler passes over
    for schedule in state.schedules:
        schedule.step()
    _forget_gradients(state)
    state.step += 1
    return norm


def _forget_gradients(state: TrainingState) -> None:
    for optimizer in state.optimizers:
        optimizer.zero_grad()


def process_share(config: GeneratorConfig, rank: int) -> list[range]:
    """Positions in a step's batch that a process takes, one range for each accumulated part.

    >>> process_share(GeneratorConfig(batch_size=8, num_processes=2, gradient_accumulation_steps=2), 1)
    [range(1, 8, 4), range(3, 8, 4)]
    """
    parts = config.num_parts
    stride = config.num_processes * parts
    return [range(rank + config.num_processes * k, config.batch_size, stride) for k in range(parts)]


def train_generator(
    generator: Generator,
    training_set: TrainingSet,
    config: GeneratorConfig,
    work: Path,
    fingerprint: str,
    *,
    on_step: Callable[[Metrics], None] = lambda metrics: None,
    on_probe: Callable[[TrainingState], Metrics] = lambda state: {},
) -> None:
    """Train in place, ending with the averaged (EMA) weights in the generator.

    A run that was killed goes on from `work`; on one CPU process it ends bit-identical to a run
    that was not, because every step's random numbers are a function of the seed and the step. Several
    processes, each calling this under `torchrun`, share every batch.

    Args:
        work: folder for the checkpoints and `metrics.jsonl`, written by the first process.
        fingerprint: identity of the run; a checkpoint of another is refused.
        on_step: called with each step's metrics by the first process.
        on_probe: called every `probe.interval` steps by the first process, with the averaged weights
            in the generator; what it returns joins the step's metrics. It must use no global
            random numbers.

    Raises:
        TrainingDiverged: a loss became NaN, infinite or huge.
        OutOfMemory: a step needs more than the device has.
        InvalidModel: the checkpoint in `work` is of another run.
    """
    state = new_state(generator, config)
    accelerator = state.accelerator
    checkpoint = newest_checkpoint(checkpoints(work))
    if checkpoint:
        load_checkpoint(state, fingerprint, checkpoint)
        logger.info("going on from the checkpoint at step %d", state.step)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        truncate_metrics(work / METRICS_NAME, state.step)
    with _memory_errors(state, config):
        started = time.perf_counter()
        for batches in batches_ahead(state, training_set, config):
            metrics = _checked_step(state, config, batches, work)
            metrics["images_per_second"] = config.batch_size / (time.perf_counter() - started)
            metrics["peak_memory_gb"] = peak_memory_bytes() / 1e9
            if accelerator.is_main_process:
                if config.probe.interval and state.step % config.probe.interval == 0:
                    metrics |= _probe(state, config, on_probe)
                with (work / METRICS_NAME).open("a") as file:
                    file.write(json.dumps(metrics) + "\n")
                if state.step % config.checkpoint_interval == 0 or state.step == config.num_steps:
                    save_checkpoint(state, fingerprint, work, config.keep_checkpoints)
                on_step(metrics)
            accelerator.wait_for_everyone()
            started = time.perf_counter()
    if state.average is not None:
        state.average.copy_to_model()
    merge_adapters(generator)


@contextmanager
def _memory_errors(state: TrainingState, config: GeneratorConfig) -> Iterator[None]:
    """Say which options need less.

    Raises:
        OutOfMemory: the device has too little.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"step {state.step}: the memory of {default_device()} does not suffice. "
            "train_generator.gradient_checkpointing=true, more gradient_accumulation_steps (now "
            f"{config.num_parts}) and, if it was a probe, a smaller probe.sampling.batch_size (now "
            f"{config.probe.sampling.batch_size}) need less and give the same result"
        ) from error


@dataclass(frozen=True, slots=True)
class _StepBatches(Dataset[list[Batch]]):
    """A process' share of every step's batch."""

    generator: Generator
    training_set: TrainingSet
    config: GeneratorConfig
    rank: int

    def __getitem__(self, step: int) -> list[Batch]:
        parts = process_share(self.config, self.rank)
        return make_batches(self.generator, self.training_set, self.config, step, parts)


def batches_ahead(
    state: TrainingState, training_set: TrainingSet, config: GeneratorConfig
) -> Iterable[list[Batch]]:
    """Batches of the steps that are left, assembled while others are worked on.

    Processes do it, or where images are encoded, which needs the device, a thread.
    """
    batches = _StepBatches(state.generator, training_set, config, state.accelerator.process_index)
    steps = range(state.step, config.num_steps)
    if config.latents == "online":
        return _one_ahead(batches, steps, state.accelerator.device)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=config.num_workers,
        collate_fn=list,
    )


def _one_ahead(
    batches: _StepBatches, steps: Sequence[int], device: torch.device
) -> Iterator[list[Batch]]:
    def use_device() -> None:
        if device.type == "cuda":  # a new thread's is the first one
            torch.cuda.set_device(device)

    with ThreadPoolExecutor(1, initializer=use_device) as assembler:
        coming = [assembler.submit(batches.__getitem__, step) for step in steps[:1]]
        for step in steps[1:]:
            coming.append(assembler.submit(batches.__getitem__, step))
            yield coming.pop(0).result()
        for last in coming:
            yield last.result()


def _checked_step(
    state: TrainingState, config: GeneratorConfig, batches: Sequence[Batch], work: Path
) -> Metrics:
    device = default_device()
    try:
        return train_step(state, config, [batch.to(device) for batch in batches])
    except TrainingDiverged as error:
        raise TrainingDiverged(
            f"{error}; the last good checkpoint is {newest_checkpoint(checkpoints(work)) or 'the start'}. "
            f"Lower learning_rate ({config.learning_rate}) and run again: finished stages are kept"
        ) from error


def _probe(
    state: TrainingState, config: GeneratorConfig, on_probe: Callable[[TrainingState], Metrics]
) -> Metrics:
    with state.average.in_model() if state.average else nullcontext():
        state.modules.eval()
        metrics = on_probe(state)
    state.modules.train()
    if config.latents == "cached":
        state.generator.model.vae.to("cpu")
        release_memory()
    return metrics
