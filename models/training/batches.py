"""Batches of the generator's training, each a pure function of the seed and the step."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from jaxtyping import Int
from torch import Tensor

from data.layouts.layout import Layout
from data.layouts.prompts import Prompt
from models.generator.conditioning import LayoutBatch, token_weights
from models.generator.modules import Generator
from models.generator.options import GeneratorConfig
from models.training.training_set import TrainingSet


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one pass through the modules needs; masks are shares of cells, 0 to 255.

    The canvas, far larger, is drawn where the pass is made; `dropped` images have neither prompt nor canvas.
    """

    latents: Tensor
    input_ids: Tensor
    token_weights: Tensor
    layouts: LayoutBatch
    masks: Tensor
    dropped: Tensor
    noise: Tensor
    timesteps: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Move every tensor to a device; out of pinned memory nobody waits for it."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: v.to(device, non_blocking=True) for k, v in tensors.items()})

    def pin_memory(self) -> "Batch":
        """Bring every tensor into memory that a GPU copies from while the CPU works on."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


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
    """Assemble the batch of a step."""
    whole = [range(config.batch_size)]
    return make_batches(generator, training_set, config, step, whole)[0]


def make_batches(
    generator: Generator,
    training_set: TrainingSet,
    config: GeneratorConfig,
    step: int,
    parts: Sequence[Sequence[int]],
) -> list[Batch]:
    """Assemble parts of a step's batch.

    Random numbers and prompts are made for the whole batch, so that it does not depend on how many
    processes and parts share it. Objects stand in the order of the prompt, which is shuffled.

    Args:
        parts: positions in the batch.
    """
    rng = step_generator(config.seed, step)
    size, num_images = config.batch_size, len(training_set.layouts)
    indices = batch_indices(num_images, size, config.seed, step)
    flips = torch.rand(size, generator=rng) < config.flip_probability
    dropped = torch.rand(size, generator=rng) < config.prompt_dropout
    num_timesteps = generator.model.noise_scheduler.config.num_train_timesteps
    timesteps = _timesteps(config, num_timesteps, rng)
    seeds = torch.randint(2**62, (size,), generator=rng).tolist()
    layouts = [
        _layout(training_set, index, flip=bool(flip), seed=seed)
        for index, flip, seed in zip(indices, flips, seeds, strict=True)
    ]
    prompts = [generator.encoder.prompt(layout) for layout, _ in layouts]
    texts = ["" if drop else item.text for item, drop in zip(prompts, dropped, strict=True)]
    input_ids = generator.encoder.input_ids(texts, longest=config.prompt_padding == "longest")
    items = [
        _Sample(indices[i], bool(flips[i]), *layouts[i], prompts[i], seeds[i]) for i in range(size)
    ]
    return [
        _collate(
            generator,
            training_set,
            [items[i] for i in part],
            input_ids[list(part)],
            dropped[list(part)],
            timesteps[list(part)],
        )
        for part in parts
    ]


def _timesteps(
    config: GeneratorConfig, num_timesteps: int, rng: torch.Generator
) -> Int[Tensor, " batch"]:
    if config.timestep_sampling == "uniform":
        return torch.randint(0, num_timesteps, (config.batch_size,), generator=rng)
    share = compute_density_for_timestep_sampling(
        "logit_normal",
        config.batch_size,
        logit_mean=config.timestep_logit_mean,
        logit_std=1.0,
        generator=rng,
    )
    return (share * num_timesteps).long()


@dataclass(frozen=True, slots=True)
class _Sample:
    """One image of a batch; `order` is that of the layout's objects in the data set."""

    index: int
    flip: bool
    layout: Layout
    order: np.ndarray
    prompt: Prompt
    seed: int


def _layout(
    training_set: TrainingSet, index: int, *, flip: bool, seed: int
) -> tuple[Layout, np.ndarray]:
    """An image's layout, mirrored or not, its objects in an order of the sample's own, and that order."""
    layout = training_set.layouts[index]
    order = np.random.default_rng(seed).permutation(len(layout.boxes))
    return reordered(mirror(layout) if flip else layout, order), order


def _collate(
    generator: Generator,
    training_set: TrainingSet,
    items: Sequence[_Sample],
    input_ids: Tensor,
    dropped: Tensor,
    timesteps: Tensor,
) -> Batch:
    encoder = generator.encoder
    layouts = encoder.batch([item.layout for item in items])
    weights = token_weights(
        [item.prompt for item in items], layouts.labels.shape[1], input_ids.shape[1]
    )
    weights[dropped] = 0
    noise, posterior_noise = torch.stack(
        [
            torch.randn(
                2, *training_set.latent_shape, generator=torch.Generator().manual_seed(item.seed)
            )
            for item in items
        ],
        dim=1,
    )
    latents = training_set.latents(
        [item.index for item in items],
        torch.tensor([item.flip for item in items]),
        posterior_noise,
    )
    masks = torch.zeros(*layouts.labels.shape, *latents.shape[2:], dtype=torch.uint8)
    for row, item in enumerate(items):
        source = training_set.masks(item.index)[item.order]
        masks[row, : len(source)] = source.flip(-1) if item.flip else source
    return Batch(
        latents=latents,
        input_ids=input_ids,
        token_weights=weights,
        layouts=layouts,
        masks=masks,
        dropped=dropped,
        noise=noise,
        timesteps=timesteps,
    )


def mirror(layout: Layout) -> Layout:
    """Flip a layout's boxes left to right; its masks are left as they are."""
    boxes = layout.boxes.copy()
    boxes[:, [0, 2]] = layout.width - layout.boxes[:, [2, 0]]
    return replace(layout, boxes=boxes)


def reordered(layout: Layout, order: np.ndarray) -> Layout:
    """Bring a layout's objects into another order."""
    return replace(
        layout,
        boxes=layout.boxes[order],
        category_ids=layout.category_ids[order],
        is_thing=layout.is_thing[order],
        attributes=tuple(layout.attributes[i] for i in order),
        masks=tuple(layout.masks[i] for i in order),
    )
