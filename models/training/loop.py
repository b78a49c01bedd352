"""Training the generator: one loop, on one process or several, that goes on after a kill."""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data.errors import TrainingDiverged
from models.devices import (
    attention_kernel,
    full_float32,
    peak_memory_bytes,
    release_memory,
)
from models.generator.modules import Generator
from models.generator.options import GeneratorConfig
from models.newest_checkpoint import newest_checkpoint
from models.training.batches import Batch, make_batches
from models.training.checkpoint_files import checkpoints, load_checkpoint, save_checkpoint
from models.training.losses import (
    denoising_loss,
    foreground_weights,
    mask_iou,
    min_snr_weights,
    perception_loss,
)
from models.training.memory_errors import memory_errors
from models.training.metrics_file import METRICS_NAME, Metrics, truncate_metrics
from models.training.state import (
    TrainingState,
    clip_gradients,
    merge_adapters,
    new_state,
)
from models.training.training_set import TrainingSet

logger = logging.getLogger(__name__)

_DIVERGED_LOSS = 100.0
"""Predicting zero costs about 1."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What a step measures, which a GPU may still be computing.

    Attributes:
        step: optimiser steps made before it.
        names: of the parts of the loss.
        values: their means, the mean loss and the norm of the gradients; on the CPU, once `copied`.
        rates: learning rates.
        may_overflow: in fp16, whose loss scaler passes over such steps.
        copied: of a GPU.
    """

    step: int
    names: tuple[str, ...]
    values: Tensor
    rates: Metrics
    may_overflow: bool
    copied: torch.cuda.Event | None

    def read(self) -> Metrics:
        """Wait for the step and return what is finite.

        Raises:
            TrainingDiverged: the loss is NaN, infinite or huge, or the gradients are not finite.
        """
        if self.copied is not None:
            self.copied.synchronize()
        *parts, loss, norm = self.values.tolist()
        if not abs(loss) < _DIVERGED_LOSS:
            raise TrainingDiverged(f"step {self.step}: the loss is {loss}")
        if not (math.isfinite(norm) or self.may_overflow):
            raise TrainingDiverged(f"step {self.step}: the norm of the gradients is {norm}")
        metrics = dict(zip(self.names, parts, strict=True)) | {"loss": loss, "grad_norm": norm}
        metrics |= {**self.rates, "step": float(self.step + 1)}
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


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
    scale = torch.tensor([width, height, width, height])
    scale = scale.to(batch.latents.device, non_blocking=True)
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
    generator, seen = state.generator, ~batch.dropped[:, None, None, None]
    noisy = generator.model.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    canvas = generator.encoder.canvas(batch.layouts, *noisy.shape[2:]) * seen
    inputs = torch.cat([noisy, canvas], dim=1)
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


def train_step(
    state: TrainingState, config: GeneratorConfig, batches: Sequence[Batch]
) -> StepMetrics:
    """Make one optimiser step in place; on a GPU it is under way when this returns.

    Args:
        batches: this process' share of the step's batch, in equal parts.
    """
    step, rows = state.step, []
    accelerator, precision = state.accelerator, config.mixed_precision
    for batch in batches:
        with accelerator.accumulate(state.model), attention_kernel(), full_float32(precision):
            loss, parts = compute_losses(state, config, batch)
            accelerator.backward(loss)
            rows.append(torch.stack(list(parts.values())))
    values = accelerator.gather(torch.stack(rows))
    norm = _update(state, config)
    measured = torch.cat([values.nanmean(dim=0), values[:, -1].mean()[None], norm[None]])
    measured = measured.to("cpu", non_blocking=True)
    copied = None
    if values.is_cuda:
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped
        copied.record()
    return StepMetrics(
        step=step,
        names=tuple(parts),
        values=measured,
        rates=_rates(state),
        may_overflow=accelerator.scaler is not None,
        copied=copied,
    )


def _rates(state: TrainingState) -> Metrics:
    """By name; of the text encoder's layers that of the top, whose group is the last."""
    groups, rates = state.optimizers[0].param_groups, state.schedules[0].get_last_lr()
    return {group["name"]: float(rate) for group, rate in zip(groups, rates, strict=True)}


def _update(state: TrainingState, config: GeneratorConfig) -> Tensor:
    """Clip, step and average; return the norm of the gradients."""
    norm, rows = clip_gradients(state, config.max_grad_norm)
    if state.accelerator.scaler is not None and not norm.isfinite():
        _skip_update(state)
        return norm
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


def _skip_update(state: TrainingState) -> None:
    """Let fp16's loss scaler look for a smaller scale."""
    state.optimizers[0].step()  # which the scaler passes over
    for schedule in state.schedules:
        schedule.step()
    _forget_gradients(state)
    state.step += 1


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
    with memory_errors(config):
        state = new_state(generator, config)
    accelerator = state.accelerator
    # The first process chooses: hosts may see a shared folder at different ages.
    newest = newest_checkpoint(checkpoints(work)) if accelerator.is_main_process else None
    checkpoint = broadcast_object_list([newest])[0]
    if checkpoint:
        load_checkpoint(state, fingerprint, checkpoint)
        logger.info("going on from the checkpoint at step %d", state.step)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        truncate_metrics(work / METRICS_NAME, state.step)
    with memory_errors(config, state):
        begun: deque[StepMetrics] = deque()
        started = time.perf_counter()
        for batches in batches_ahead(state, training_set, config):
            on_device = [batch.to(accelerator.device) for batch in batches]
            begun.append(train_step(state, config, on_device))
            probes, saves = _is_probed(state, config), _is_saved(state, config)
            while len(begun) > (0 if probes or saves else _steps_ahead(accelerator.device)):
                metrics = _read(begun.popleft(), config, work)
                now = time.perf_counter()
                metrics["images_per_second"] = config.batch_size / (now - started)
                metrics["peak_memory_gb"] = peak_memory_bytes() / 1e9
                started = now
                if not accelerator.is_main_process:
                    continue
                if probes and not begun:
                    metrics |= _probe(state, config, on_probe)
                with (work / METRICS_NAME).open("a") as file:
                    file.write(json.dumps(metrics) + "\n")
                if saves and not begun:
                    save_checkpoint(state, fingerprint, work, config.keep_checkpoints)
                on_step(metrics)
            if probes or saves:
                accelerator.wait_for_everyone()
                started = time.perf_counter()
    if state.average is not None:
        state.average.copy_to_model()
    merge_adapters(generator)


def _is_probed(state: TrainingState, config: GeneratorConfig) -> bool:
    return bool(config.probe.interval) and state.step % config.probe.interval == 0


def _is_saved(state: TrainingState, config: GeneratorConfig) -> bool:
    return state.step % config.checkpoint_interval == 0 or state.step == config.num_steps


def _steps_ahead(device: torch.device) -> int:
    """Steps that are begun while one is computed: a GPU has work when its numbers are read."""
    return 1 if device.type == "cuda" else 0


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
        multiprocessing_context="fork" if config.num_workers else None,  # not as steps are started
        collate_fn=list,
        pin_memory=state.accelerator.device.type == "cuda",
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


def _read(step: StepMetrics, config: GeneratorConfig, work: Path) -> Metrics:
    try:
        return step.read()
    except TrainingDiverged as error:
        raise TrainingDiverged(
            f"{error}; the last good checkpoint is {newest_checkpoint(checkpoints(work)) or 'the start'}. "
            f"Lower learning_rate ({config.learning_rate}) and run again: finished stages are kept"
        ) from error


def _probe(
    state: TrainingState, config: GeneratorConfig, on_probe: Callable[[TrainingState], Metrics]
) -> Metrics:
    averaged = state.average.in_model() if state.average else nullcontext()
    with averaged, torch.compiler.set_stance("force_eager"):  # not for a few images
        state.modules.eval()
        metrics = on_probe(state)
    state.modules.train()
    if config.latents == "cached":
        state.generator.model.vae.to("cpu")
        release_memory()
    return metrics
