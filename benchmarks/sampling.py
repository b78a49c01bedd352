"""Sampling 64 images in batches with UniPC-20, against PLMS-50 one by one with two passes a step."""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from demo_generator import demo
from diffusers import PNDMScheduler

from data.layouts.layout import Layout
from models.generator.autoencoder import to_uint8
from models.generator.drawing_options import SamplingConfig
from models.generator.modules import Generator
from models.generator.sampling import initial_latents, sample_batch

GOAL = 6.0
BATCH = 64
_SCALE = 2.0


@torch.inference_mode()
def one_by_one(generator: Generator, layouts: list[Layout], seeds: list[int]) -> np.ndarray:
    """PLMS-50, each image for itself, the two halves of the guidance in passes of their own."""
    return np.concatenate(
        [_plain_image(generator, *pair) for pair in zip(layouts, seeds, strict=True)]
    )


def _plain_image(generator: Generator, layout: Layout, seed: int) -> np.ndarray:
    model, encoder = generator.model, generator.encoder
    size = model.unet.config.sample_size
    texts = ["", encoder.prompt(layout).text]
    empty, states = model.text_encoder(encoder.input_ids(texts)).last_hidden_state.chunk(2)
    canvas = encoder.canvas(encoder.batch([layout]), size, size)
    sampler = PNDMScheduler.from_config(model.noise_scheduler.config, skip_prk_steps=True)
    sampler.set_timesteps(50)
    latents = initial_latents([seed], (model.vae.config.latent_channels, size, size))
    for timestep in sampler.timesteps:
        without = model.unet(torch.cat([latents, 0 * canvas], 1), timestep, empty).sample
        given = model.unet(torch.cat([latents, canvas], 1), timestep, states).sample
        guided = without + _SCALE * (given - without)
        latents = sampler.step(guided, timestep, latents).prev_sample
    return to_uint8(model.vae.decode(latents / model.vae.config.scaling_factor).sample)


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds and result of a call."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> int:
    """Print the speeds; 1 below the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    num_images = parser.parse_args().images
    slow = SamplingConfig(
        sampler="pndm",
        num_inference_steps=50,
        guidance_scale=_SCALE,
        batch_size=BATCH,
        mixed_precision="no",
    )
    fast = slow.model_copy(update={"sampler": "unipc", "num_inference_steps": 20})
    auto = fast.model_copy(update={"mixed_precision": "auto"})
    with demo(num_images) as scene:
        generator, seeds = scene.new_generator(), list(range(num_images))
        generator.model.unet.eval()
        sample_batch(generator, scene.layouts[:2], [0, 1], fast)
        plain, expected = timed(lambda: one_by_one(generator, scene.layouts, seeds))
        batched, same = timed(lambda: sample_batch(generator, scene.layouts, seeds, slow))
        fewer, _ = timed(lambda: sample_batch(generator, scene.layouts, seeds, fast))
        native, _ = timed(lambda: sample_batch(generator, scene.layouts, seeds, auto))
    difference = int(np.abs(same.astype(int) - expected).max())
    print(f"PLMS-50, one by one, two passes: {plain:.1f} s for {num_images} images")
    print(f"PLMS-50, batches of {BATCH}: {batched:.1f} s, batches give {plain / batched:.2f}×")
    print(f"UniPC-20, batches: {fewer:.1f} s, fewer steps give {batched / fewer:.2f}×")
    print(f"UniPC-20, batches, precision auto: {native:.1f} s, {fewer / native:.2f}×")
    ratio, equal = plain / native, difference <= 2
    print(
        f"sampling: {ratio:.1f}× as fast (fp32 {plain / fewer:.1f}×); goal {GOAL:.0f}×; PLMS in batches "
        f"{'equals' if equal else 'DIFFERS FROM'} one by one (at most {difference} of 255 levels)"
    )
    return 0 if ratio >= GOAL and equal else 1


if __name__ == "__main__":
    sys.exit(main())
