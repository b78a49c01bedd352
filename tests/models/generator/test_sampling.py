import errno
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.vocabulary.images import read_rgb
from models.generator import sampling
from models.generator.drawing_options import SamplingConfig
from models.generator.modules import compile_blocks, load_generator, save_generator
from models.generator.sampling import (
    Picture,
    draw_pictures,
    generated_size,
    initial_latents,
    sample_batch,
)

FAST = SamplingConfig(sampler="dpm-solver++", num_inference_steps=2, guidance_scale=2.0)


@pytest.mark.parametrize("sampler", ["pndm", "unipc", "dpm-solver++"])
def test_every_sampler_gives_images(new_generator, layouts, sampler):
    config = FAST.model_copy(update={"sampler": sampler, "num_inference_steps": 4})
    images = sample_batch(new_generator(), layouts[:2], [1, 2], config)
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8


@pytest.mark.parametrize("sampler", ["pndm", "unipc", "dpm-solver++"])
def test_a_saved_generator_draws_what_it_drew_in_memory(new_generator, layouts, tmp_path, sampler):
    config = FAST.model_copy(update={"sampler": sampler, "num_inference_steps": 4})
    generator = new_generator()
    before = sample_batch(generator, layouts[:2], [1, 2], config)
    save_generator(generator, tmp_path / "generator")
    after = sample_batch(load_generator(tmp_path / "generator"), layouts[:2], [1, 2], config)
    assert (before == after).all()


def test_diffusers_draws_the_same_from_a_saved_generator(new_generator, layouts, tmp_path):
    generator = new_generator("tokens")
    torch.manual_seed(0)
    generator.model.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        latent_channels=12,
    )
    config = SamplingConfig(num_inference_steps=10, mixed_precision="no")
    ours = sample_batch(generator, layouts[:1], [5], config)
    save_generator(generator, tmp_path / "generator")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "generator")
    theirs = pipeline(
        generator.encoder.prompt(layouts[0]).text,
        num_inference_steps=10,
        guidance_scale=config.guidance_scale,
        latents=initial_latents([5], (12, 16, 16)),
        output_type="np",
    ).images
    assert np.abs(255 * theirs - ours).max() <= 1


def test_diffusers_refuses_a_saved_generator_with_a_canvas(new_generator, tmp_path):
    save_generator(new_generator("canvas"), tmp_path / "generator")
    with pytest.raises(OSError, match=r"no file named model_index\.json"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "generator")


def test_an_image_depends_on_its_own_seed_and_not_on_the_batch(new_generator, layouts):
    generator = new_generator()
    together = sample_batch(generator, layouts[:3], [1, 2, 3], FAST).astype(int)
    alone = sample_batch(generator, layouts[1:2], [2], FAST).astype(int)
    assert np.abs(together[1] - alone[0]).max() <= 1
    other = sample_batch(generator, layouts[1:2], [4], FAST).astype(int)
    assert np.abs(other - alone).max() > 1


def test_the_same_seeds_give_the_same_bytes(new_generator, layouts):
    first, second = (sample_batch(new_generator(), layouts[:2], [5, 6], FAST) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("sampler", ["unipc", "dpm-solver++"])
def test_drawing_starts_from_a_real_image_noised_as_the_first_step_expects(
    new_generator, layouts, sampler
):
    generator, seen = new_generator(), []
    starts = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    config = FAST.model_copy(update={"sampler": sampler, "num_inference_steps": 10})
    generator.model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:2]))
    sample_batch(generator, layouts[:2], [1, 2], config, starts, strength=0.3)
    assert [int(timestep) for _, timestep in seen] == [271, 181, 91]
    kept = generator.model.noise_scheduler.alphas_cumprod[271]
    pixels = torch.from_numpy(starts).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        clean = generator.model.vae.encode(pixels).latent_dist.mean
    clean = clean * generator.model.vae.config.scaling_factor
    expected = kept**0.5 * clean + (1 - kept) ** 0.5 * initial_latents([1, 2], clean.shape[1:])
    latents = seen[0][0][:2, : clean.shape[1]]  # the canvas is behind
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_without_guidance_the_layout_does_not_matter(new_generator, layouts):
    config = FAST.model_copy(update={"guidance_scale": 0.0})
    generator = new_generator()
    first = sample_batch(generator, layouts[:1], [1], config).astype(int)
    second = sample_batch(generator, layouts[1:2], [1], config).astype(int)
    assert np.abs(first - second).max() <= 1


sides = st.integers(1, 20_000)
resolutions = st.integers(8, 2048)


@given(sides, sides, resolutions)
def test_a_picture_has_the_images_proportions_and_no_more_pixels(width, height, resolution):
    found = generated_size(width, height, resolution)
    assert 1 <= found[0] <= width
    assert 1 <= found[1] <= height
    assert found == generated_size(height, width, resolution)[::-1]
    if width * height <= resolution**2:
        assert found == (width, height)
        return
    exact = [side * resolution / (width * height) ** 0.5 for side in (width, height)]
    assert exact[0] * exact[1] == pytest.approx(resolution**2)
    for side, wanted in zip(found, exact, strict=True):
        assert abs(side - wanted) <= max(0.5, 1 - wanted) + 1e-6


@given(sides, resolutions)
def test_a_square_is_drawn_as_it_is(side, resolution):
    assert generated_size(side, side, resolution) == 2 * (min(side, resolution),)


@pytest.fixture
def pictures(layouts, tmp_path):
    sizes = [(64, 64), (50, 70), (300, 200), (64, 64), (20, 9)]
    return [
        Picture(layout, seed, size, tmp_path / f"{seed}.png")
        for seed, (layout, size) in enumerate(zip(layouts, sizes, strict=False))
    ]


def test_files_hold_what_was_sampled_at_their_size(new_generator, pictures):
    config, generator = FAST.model_copy(update={"batch_size": 2}), new_generator()
    assert list(draw_pictures(generator, pictures, config)) == [2, 2, 1]
    for start in (0, 2, 4):
        batch = pictures[start : start + 2]
        images = sample_batch(generator, [p.layout for p in batch], [p.seed for p in batch], config)
        for picture, pixels in zip(batch, images, strict=True):
            expected = Image.fromarray(pixels)
            if picture.size != (64, 64):
                expected = expected.resize(picture.size, Image.Resampling.BICUBIC)
            assert (np.asarray(read_rgb(picture.path)) == np.asarray(expected)).all()
    assert not list(pictures[0].path.parent.glob("*.tmp"))


@pytest.fixture
def with_memory_for(monkeypatch):
    """Lets so many images be sampled at once."""

    def limit(most):
        def sample(generator, layouts, *given):
            if len(layouts) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return sample_batch(generator, layouts, *given)

        monkeypatch.setattr(sampling, "sample_batch", sample)

    return limit


def test_batches_that_memory_does_not_suffice_for_are_halved(
    new_generator, pictures, with_memory_for, caplog
):
    with_memory_for(2)
    generator, config = new_generator(), FAST.model_copy(update={"batch_size": 9})
    assert list(draw_pictures(generator, pictures, config)) == [2, 2, 1]
    assert "no memory for 5 images at once: going on with 2" in caplog.text
    expected = sample_batch(generator, [p.layout for p in pictures[2:4]], [2, 3], FAST)
    assert (np.asarray(read_rgb(pictures[3].path)) == expected[1]).all()
    with_memory_for(0)
    with pytest.raises(torch.OutOfMemoryError):
        list(draw_pictures(generator, pictures, config))


def test_sampling_is_one_batch_ahead_of_the_files_at_most(new_generator, pictures):
    config, folder = FAST.model_copy(update={"batch_size": 1}), pictures[0].path.parent
    written = 0
    for count in draw_pictures(new_generator(), pictures, config):
        written += count
        there = {int(path.stem) for path in folder.glob("*.png")}
        assert set(range(written)) <= there <= set(range(written + 1))
    assert written == len(pictures)


def test_a_full_disk_is_told_and_leaves_whole_files(new_generator, pictures, monkeypatch):
    save = Image.Image.save

    def full(image, file, *args, **kwargs):
        if Path(file.name).name == "2.tmp":
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, file, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    config = FAST.model_copy(update={"batch_size": 1})
    with pytest.raises(OSError, match="No space left"):
        list(draw_pictures(new_generator(), pictures, config))
    there = {path.name for path in pictures[0].path.parent.glob("*.png")}
    assert there == {"0.png", "1.png", "3.png"}  # the batch after it was in flight


def test_whole_batches_alone_are_drawn_compiled(new_generator, pictures, monkeypatch):
    compiled = []

    def as_it_is(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=as_it_is))
    generator, config = new_generator(), FAST.model_copy(update={"batch_size": 2})
    compile_blocks(generator.model.unet)
    squares = [replace(picture, size=(64, 64)) for picture in pictures[:3]]
    deque(draw_pictures(generator, squares[:1], config), maxlen=0)
    assert not compiled
    deque(draw_pictures(generator, squares, config), maxlen=0)
    assert compiled
    for picture in squares:
        (alone,) = sample_batch(new_generator(), [picture.layout], [picture.seed], FAST)
        assert np.abs(np.asarray(read_rgb(picture.path)).astype(int) - alone).max() <= 1


def test_initial_noise_is_standard_normal():
    noise = initial_latents(range(50), (4, 16, 16))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
