"""Drawing images from layouts: batched classifier-free guidance with a seed per image."""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from data.artifacts.files import durable_file
from data.layouts.layout import Layout
from data.vocabulary.images import read_square
from models.devices import autocast, default_device, full_float32, release_memory, to_device
from models.generator.autoencoder import pixel_values
from models.generator.drawing_options import SamplingConfig
from models.generator.modules import Generator
from models.generator.samplers import new_sampler

logger = logging.getLogger(__name__)

_NUM_WRITERS = 4
"""Threads."""

_BATCHES_IN_FLIGHT = 2
"""One that is sampled, and one that is written meanwhile."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file to be drawn.

    Attributes:
        layout: what it shows.
        seed: of the initial noise.
        size: width and height of the file, pixels.
        path: of the PNG file.
        source: of the real image that drawing starts from; None is noise alone.
    """

    layout: Layout
    seed: int
    size: tuple[int, int]
    path: Path
    source: Path | None = None

    @property
    def boxes(self) -> np.ndarray:
        """The layout's boxes in pixels of the file, float64 (num_objects, 4)."""
        return self.layout.boxes_at(*self.size)


def generated_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Size of a picture in an image's proportions, with no more pixels than are drawn and than it has.

    Both sides are multiplied by min(1, resolution / √(width · height)) and rounded to whole pixels.

    Args:
        width: of the image whose layout is drawn, pixels.
        height: likewise.
        resolution: side of the square that the generator draws, pixels.

    >>> generated_size(4000, 3000, 512)
    (591, 443)
    >>> generated_size(64, 64, 64)
    (64, 64)
    """
    scale = min(1.0, resolution / math.sqrt(width * height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _sampled(
    generator: Generator,
    batch: Sequence[Picture],
    config: SamplingConfig,
    starts: Sequence[np.ndarray],
    strength: float,
) -> UInt8[np.ndarray, "images height width 3"] | None:
    """Sample a batch; None where the device's memory does not suffice for more than one."""
    layouts, seeds = [item.layout for item in batch], [item.seed for item in batch]
    is_whole = len(batch) == config.batch_size
    with nullcontext() if is_whole else torch.compiler.set_stance("force_eager"):
        try:
            return sample_batch(generator, layouts, seeds, config, starts, strength)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
    return None


def draw_pictures(
    generator: Generator,
    pictures: Sequence[Picture],
    config: SamplingConfig,
    strength: float = 1.0,
) -> Iterator[int]:
    """Sample batch by batch; files are read, resized and encoded in threads while the next one is sampled.

    Where the generator's blocks are to be compiled, they are for whole batches alone. Where the device's
    memory does not suffice for a batch, batches are half as large from then on.

    Args:
        strength: as in `sample_batch`; below 1 all pictures must have a source.

    Yields:
        Of each batch, once they are written, the number of its files.
    """
    read = partial(read_square, resolution=generator.model.resolution)
    with ThreadPoolExecutor(_NUM_WRITERS) as pool:
        in_flight: deque[list[Future[None]]] = deque()
        start, size = 0, config.batch_size
        while start < len(pictures):
            batch = pictures[start : start + size]
            starts = list(pool.map(read, (item.source for item in batch if item.source)))
            images = _sampled(generator, batch, config, starts, strength)
            if images is None:
                release_memory()
                size = len(batch) // 2
                logger.warning(
                    "no memory for %d images at once: going on with %d", len(batch), size
                )
                continue
            start += len(batch)
            in_flight.append(
                [pool.submit(write_picture, *pair) for pair in zip(batch, images, strict=True)]
            )
            if len(in_flight) == _BATCHES_IN_FLIGHT:
                yield _num_written(in_flight.popleft())
        while in_flight:
            yield _num_written(in_flight.popleft())


def write_picture(picture: Picture, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """Save at the picture's size; a file that is there is whole, whatever ends the process or machine."""
    image = Image.fromarray(pixels)
    if image.size != picture.size:
        image = image.resize(picture.size, Image.Resampling.BICUBIC)
    with durable_file(picture.path) as file:
        image.save(file, "PNG", compress_level=1)


def _num_written(files: Sequence[Future[None]]) -> int:
    """Wait for a batch's files; what went wrong with one is raised here."""
    for file in files:
        file.result()
    return len(files)


def initial_latents(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, one generator per image, on the CPU for equal numbers everywhere."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


@torch.inference_mode()
def sample_batch(
    generator: Generator,
    layouts: Sequence[Layout],
    seeds: Sequence[int],
    config: SamplingConfig,
    starts: Sequence[UInt8[np.ndarray, "side side 3"]] = (),
    strength: float = 1.0,
) -> UInt8[np.ndarray, "batch height width 3"]:
    """Generate one square image per layout.

    The prediction is guided as ε̂ = ε(∅) + s (ε(layout) - ε(∅)) with s the guidance scale; the empty
    condition is the empty prompt and an empty canvas.

    Args:
        starts: images to start from where strength is below 1, one per layout, of the model's resolution.
        strength: share of the steps that are taken, the last ones, from an image noised as far as the
            first of them expects (SDEdit, Meng et al. 2022); 1: all, from noise alone.
    """
    model, encoder, device = generator.model, generator.encoder, default_device()
    to_device(model.unet.eval())
    model.text_encoder.to(device).eval()
    size = model.unet.config.sample_size
    texts = [encoder.prompt(layout).text for layout in layouts]
    input_ids = encoder.input_ids([""] * len(texts) + texts)
    states = model.text_encoder(input_ids.to(device)).last_hidden_state
    canvas = encoder.canvas(encoder.batch(layouts), size, size).to(device)
    canvas = torch.cat([torch.zeros_like(canvas), canvas])
    sampler = new_sampler(config.sampler, model.noise_scheduler)
    sampler.set_timesteps(config.num_inference_steps, device=device)
    shape = (model.vae.config.latent_channels, size, size)
    noise, timesteps = initial_latents(seeds, shape), sampler.timesteps
    latents = noise.to(device) * sampler.init_noise_sigma
    if strength < 1:
        timesteps = timesteps[-config.num_steps(strength) :]
        mean, _ = model.latent_moments(pixel_values(np.stack(starts))).chunk(2, dim=1)
        clean = mean * model.vae.config.scaling_factor
        latents = sampler.add_noise(clean, noise, timesteps[:1].cpu()).to(device)
    for timestep in timesteps:
        scaled = sampler.scale_model_input(latents, timestep)
        inputs = torch.cat([torch.cat([scaled, scaled]), canvas], dim=1)
        with autocast(config.mixed_precision), full_float32(config.mixed_precision):
            prediction = model.unet(inputs, timestep, states).sample.float()
        empty, conditional = prediction.chunk(2)
        guided = empty + config.guidance_scale * (conditional - empty)
        latents = sampler.step(guided, timestep, latents).prev_sample
    return model.decode(latents, config.mixed_precision)
