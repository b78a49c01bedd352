import numpy as np
import pytest

from models.generator.modules import load_generator, save_generator
from models.generator.options import SamplingConfig
from models.generator.sampling import initial_latents, sample_batch

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


def test_without_guidance_the_layout_does_not_matter(new_generator, layouts):
    config = FAST.model_copy(update={"guidance_scale": 0.0})
    generator = new_generator()
    first = sample_batch(generator, layouts[:1], [1], config).astype(int)
    second = sample_batch(generator, layouts[1:2], [1], config).astype(int)
    assert np.abs(first - second).max() <= 1


def test_initial_noise_is_standard_normal():
    noise = initial_latents(range(50), (4, 16, 16))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
