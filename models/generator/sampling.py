"""Drawing images from layouts: batched classifier-free guidance with a seed per image."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from jaxtyping import UInt8
from torch import Tensor

from data.layouts.layout import Layout
from models.devices import autocast, default_device
from models.generator.autoencoder import to_uint8
from models.generator.modules import Generator
from models.generator.options import SamplingConfig

_SPACING = {"timestep_spacing": "leading"}
"""Stable Diffusion's. Samplers differ in their defaults, which a scheduler that was made in memory takes."""

_SAMPLERS: dict[str, tuple[type[SchedulerMixin], dict[str, object]]] = {
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


def initial_latents(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, one generator per image, on the CPU for equal numbers everywhere."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


@torch.inference_mode()
def sample_batch(
    generator: Generator, layouts: Sequence[Layout], seeds: Sequence[int], config: SamplingConfig
) -> UInt8[np.ndarray, "batch height width 3"]:
    """Generate one square image per layout.

    The prediction is guided as ε̂ = ε(∅) + s (ε(layout) - ε(∅)) with s the guidance scale; the empty
    condition is the empty prompt and an empty canvas.
    """
    model, encoder, device = generator.model, generator.encoder, default_device()
    model.unet.to(device, memory_format=torch.channels_last).eval()
    model.text_encoder.to(device).eval()
    model.vae.to(device).eval()
    size = model.unet.config.sample_size
    texts = [encoder.prompt(layout).text for layout in layouts]
    input_ids = encoder.input_ids([""] * len(texts) + texts)
    states = model.text_encoder(input_ids.to(device)).last_hidden_state
    canvas = encoder.canvas(encoder.batch(layouts), size, size).to(device)
    canvas = torch.cat([torch.zeros_like(canvas), canvas])
    sampler_class, options = _SAMPLERS[config.sampler]
    sampler = sampler_class.from_config(model.noise_scheduler.config, **_SPACING, **options)
    sampler.set_timesteps(config.num_inference_steps, device=device)
    shape = (model.vae.config.latent_channels, size, size)
    latents = initial_latents(seeds, shape).to(device) * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        scaled = sampler.scale_model_input(latents, timestep)
        inputs = torch.cat([torch.cat([scaled, scaled]), canvas], dim=1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast(config.mixed_precision):
            prediction = model.unet(inputs, timestep, states).sample.float()
        empty, conditional = prediction.chunk(2)
        guided = empty + config.guidance_scale * (conditional - empty)
        latents = sampler.step(guided, timestep, latents).prev_sample
    return to_uint8(model.vae.decode(latents / model.vae.config.scaling_factor).sample)
