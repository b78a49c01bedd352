"""Training the generator: one loop, checkpoints that make a killed run go on."""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn

from data.errors import InvalidModel, TrainingDiverged
from data.layouts import Layout
from models.conditioning import LayoutBatch, token_weights
from models.config import GeneratorConfig
from models.devices import default_device
from models.generator import Generator
from models.losses import (
    denoising_loss,
    dice_loss,
    foreground_weights,
    mask_iou,
    mask_loss,
    min_snr_weights,
    perception_loss,
)
from models.perception import PerceptionHead, captured_features, up_block_channels
from models.training_set import TrainingSet

logger = logging.getLogger(__name__)

Metrics = dict[str, float]

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one optimiser step needs."""

    latents: Tensor
    input_ids: Tensor
    token_weights: Tensor
    layouts: LayoutBatch
    masks: Tensor
    canvas: Tensor
    noise: Tensor
    timesteps: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Move every tensor to a device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return Batch(**moved)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step, a function of the run's seed and the step alone."""
    state = np.random.SeedSequence([seed, step]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


@lru_cache(maxsize=2)
def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def batch_indices(num_images: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Images of a step: each epoch is its own permutation, read in order across epoch borders."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    places = (divmod(position, num_images) for position in positions)
    return [int(_epoch_order(num_images, seed, epoch)[offset]) for epoch, offset in places]


def make_batch(
    generator: Generator, training_set: TrainingSet, config: GeneratorConfig, step: int
) -> Batch:
    """Assemble the batch of a step; a pure function of its arguments."""
    rng = step_generator(config.seed, step)
    indices = batch_indices(len(training_set.layouts), config.batch_size, config.seed, step)
    flips = torch.rand(len(indices), generator=rng) < config.flip_probability
    dropped = torch.rand(len(indices), generator=rng) < config.prompt_dropout
    encoder, layouts = generator.encoder, [training_set.layouts[index] for index in indices]
    layouts = [
        mirror(layout) if flip else layout for layout, flip in zip(layouts, flips, strict=True)
    ]
    orders = [torch.randperm(len(layout.boxes), generator=rng).tolist() for layout in layouts]
    prompts = [encoder.prompt(layout, order) for layout, order in zip(layouts, orders, strict=True)]
    texts = ["" if drop else prompt.text for prompt, drop in zip(prompts, dropped, strict=True)]
    input_ids, batch = encoder.input_ids(texts), encoder.batch(layouts)
    weights = token_weights(prompts, batch.labels.shape[1], input_ids.shape[1])
    weights[dropped] = 0
    latents = training_set.latents[flips.long(), torch.tensor(indices)]
    masks = latents.new_zeros(*batch.labels.shape, *latents.shape[2:])
    for row, (index, flip) in enumerate(zip(indices, flips, strict=True)):
        source = training_set.masks[index]
        masks[row, : len(source)] = source.flip(-1) if flip else source
    canvas = encoder.canvas(batch, *latents.shape[2:])
    num_timesteps = generator.model.noise_scheduler.config.num_train_timesteps
    return Batch(
        latents=latents,
        input_ids=input_ids,
        token_weights=weights,
        layouts=batch,
        masks=masks,
        canvas=canvas * ~dropped[:, None, None, None],
        noise=torch.randn(latents.shape, generator=rng),
        timesteps=torch.randint(0, num_timesteps, (len(indices),), generator=rng),
    )


def mirror(layout: Layout) -> Layout:
    """Flip a layout's boxes left to right; its masks are left as they are."""
    boxes = layout.boxes.copy()
    boxes[:, [0, 2]] = layout.width - layout.boxes[:, [2, 0]]
    return replace(layout, boxes=boxes)


@dataclass(slots=True)
class TrainingState:
    """All that changes while training."""

    generator: Generator
    head: PerceptionHead
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    ema_unet: EMAModel
    ema_text: EMAModel
    step: int = 0

    def parts(self) -> dict[str, Any]:
        """The parts with a `state_dict`, by name."""
        return {
            "unet": self.generator.model.unet,
            "text_encoder": self.generator.model.text_encoder,
            "head": self.head,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "ema_unet": self.ema_unet,
            "ema_text": self.ema_text,
        }


def new_state(generator: Generator, config: GeneratorConfig) -> TrainingState:
    """Set up optimiser, schedule, EMA and perception head for a generator."""
    model, device = generator.model, default_device()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = PerceptionHead(up_block_channels(model.unet), model.text_encoder.config.hidden_size)
    unet = model.unet.to(device, memory_format=torch.channels_last).train()
    text_encoder = model.text_encoder.to(device).train()
    text_encoder.requires_grad_(config.text_learning_rate > 0)
    groups = [
        {"params": [*unet.parameters(), *head.to(device).parameters()], "lr": config.learning_rate}
    ]
    if config.text_learning_rate > 0:
        groups.append({"params": list(text_encoder.parameters()), "lr": config.text_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, min(config.num_warmup_steps, config.num_steps // 2), config.num_steps
    )
    averages = [
        EMAModel(
            module.parameters(),
            decay=config.ema_decay,
            use_ema_warmup=True,
            power=0.75,
            foreach=rate > 0,  # which fails where every parameter is frozen
        )
        for module, rate in (
            (unet, config.learning_rate),
            (text_encoder, config.text_learning_rate),
        )
    ]
    return TrainingState(generator, head, optimizer, schedule, *averages)


def save_checkpoint(state: TrainingState, fingerprint: str, path: Path) -> None:
    """Write the state to a temporary sibling, flush it to disk and rename it into place."""
    document = {name: part.state_dict() for name, part in state.parts().items()}
    document |= {"step": state.step, "fingerprint": fingerprint}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(document, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(state: TrainingState, fingerprint: str, path: Path) -> None:
    """Restore a state in place.

    Raises:
        InvalidModel: the checkpoint is of another configuration.
    """
    document = torch.load(path, map_location=default_device(), weights_only=True)
    if document["fingerprint"] != fingerprint:
        raise InvalidModel(f"{path} belongs to another configuration: remove it to start afresh")
    for name, part in state.parts().items():
        part.load_state_dict(document[name])
    state.step = document["step"]


def compute_losses(
    state: TrainingState, config: GeneratorConfig, batch: Batch
) -> tuple[Float[Tensor, ""], Metrics]:
    """L = L_ldm + λ L_p of one batch, and its parts as plain numbers."""
    model = state.generator.model
    scheduler = model.noise_scheduler
    alphas_cumprod = scheduler.alphas_cumprod.to(batch.latents.device)[batch.timesteps]
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    states = model.text_encoder(batch.input_ids).last_hidden_state
    inputs = torch.cat([noisy, batch.canvas], dim=1).contiguous(memory_format=torch.channels_last)
    with captured_features(model.unet) as features:
        prediction = model.unet(inputs, batch.timesteps, states).sample
    prediction_type = scheduler.config.prediction_type
    target = batch.noise
    if prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    height, width = batch.latents.shape[2:]
    cells = foreground_weights(
        batch.layouts.boxes * torch.tensor([width, height, width, height], device=states.device),
        batch.layouts.is_thing,
        height,
        width,
        config.foreground_weight,
        config.foreground_power,
    )
    sample_weights = torch.ones_like(alphas_cumprod)
    if config.min_snr_gamma is not None:
        sample_weights = min_snr_weights(alphas_cumprod, config.min_snr_gamma, prediction_type)
    loss = denoising_loss(prediction, target, cells, sample_weights)
    metrics = {"loss_ldm": float(loss.detach())}
    if config.perception_weight > 0:
        logits = state.head(features, states, batch.token_weights, (height, width))
        valid = batch.token_weights.sum(dim=2) > 0
        masks, dice = mask_loss(logits, batch.masks, valid), dice_loss(logits, batch.masks, valid)
        perception = perception_loss(masks, dice, alphas_cumprod)
        loss = loss + config.perception_weight * perception
        metrics["loss_perception"] = float(perception.detach())
        metrics["mask_iou"] = float(mask_iou(logits.detach(), batch.masks, valid))
    return loss, metrics | {"loss": float(loss.detach())}


def train_step(state: TrainingState, config: GeneratorConfig, batch: Batch) -> Metrics:
    """Make one optimiser step in place.

    Raises:
        TrainingDiverged: the loss is NaN or infinite; the state is left as before the step.
    """
    loss, metrics = compute_losses(state, config, batch)
    if not torch.isfinite(loss):
        raise TrainingDiverged(
            f"step {state.step}: the loss is {metrics['loss']}; lower learning_rate "
            f"({config.learning_rate}) and run again, finished stages are kept"
        )
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    state.optimizer.step()
    state.schedule.step()
    state.ema_unet.step(state.generator.model.unet.parameters())
    state.ema_text.step(state.generator.model.text_encoder.parameters())
    state.step += 1
    rate = float(state.schedule.get_last_lr()[0])
    return metrics | {"grad_norm": float(norm), "learning_rate": rate, "step": float(state.step)}


def train_generator(
    generator: Generator,
    training_set: TrainingSet,
    config: GeneratorConfig,
    work: Path,
    fingerprint: str,
    on_step: Callable[[Metrics], None] = lambda metrics: None,
) -> None:
    """Train in place, ending with the averaged (EMA) weights in the generator.

    A run that was killed goes on from `work`; on one CPU process it ends bit-identical to a run
    that was not, because every step's random numbers are a function of the seed and the step.

    Args:
        work: folder for the checkpoint and `metrics.jsonl`.
        fingerprint: identity of the run; a checkpoint of another is refused.
        on_step: called with each step's metrics.

    Raises:
        TrainingDiverged: a loss became NaN or infinite.
        InvalidModel: the checkpoint in `work` is of another run.
    """
    state = new_state(generator, config)
    checkpoint, log = work / _CHECKPOINT, work / "metrics.jsonl"
    if checkpoint.exists():
        load_checkpoint(state, fingerprint, checkpoint)
        logger.info("going on from the checkpoint at step %d", state.step)
    truncate_metrics(log, state.step)
    with log.open("a") as file:
        while state.step < config.num_steps:
            started = time.perf_counter()
            batch = make_batch(generator, training_set, config, state.step).to(default_device())
            metrics = train_step(state, config, batch)
            metrics["images_per_second"] = config.batch_size / (time.perf_counter() - started)
            file.write(json.dumps(metrics) + "\n")
            if state.step % config.checkpoint_interval == 0 or state.step == config.num_steps:
                file.flush()
                save_checkpoint(state, fingerprint, checkpoint)
            on_step(metrics)
    state.ema_unet.copy_to(generator.model.unet.parameters())
    state.ema_text.copy_to(generator.model.text_encoder.parameters())


def read_metrics(path: Path) -> list[Metrics]:
    """Read `metrics.jsonl`; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which will be made again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
