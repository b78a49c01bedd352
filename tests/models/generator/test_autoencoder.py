import numpy as np
import torch

from models.generator.autoencoder import PatchAutoencoder, pixel_values, to_uint8


def test_with_all_components_nothing_is_lost():
    images = torch.rand(20, 3, 8, 8) * 2 - 1
    model = PatchAutoencoder.fit(images, patch_size=2, latent_channels=12)
    latents = model.encode(images).latent_dist.mean
    assert latents.shape == (20, 12, 4, 4)
    torch.testing.assert_close(model.decode(latents).sample, images, atol=1e-5, rtol=0)


def test_the_latents_have_unit_variance_and_zero_mean(dataset):
    from data.vocabulary.images import read_square

    images = np.stack([read_square(path, 64) for _, path in dataset.image_paths("train")])
    model = PatchAutoencoder.fit(pixel_values(images))
    with torch.no_grad():
        latents = model.encode(pixel_values(images)).latent_dist.mean * model.config.scaling_factor
    assert abs(float(latents.var(dim=(0, 2, 3)).mean()) - 1) < 0.01
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-3


def test_the_decoder_takes_noise_out_of_latents(dataset):
    from data.vocabulary.images import read_square

    images = np.stack([read_square(path, 64) for _, path in dataset.image_paths("train")])
    pixels = pixel_values(images)
    model = PatchAutoencoder.fit(pixels)
    latents = model.encode(pixels).latent_dist.mean.detach()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    noisy = latents + 0.3 * noise / model.config.scaling_factor

    def error():
        with torch.no_grad():
            return float((model.decode(noisy).sample - pixels).abs().mean())

    before = error()
    model.learn_to_refine(pixels, num_steps=100, seed=0)
    assert error() < 0.85 * before
    torch.testing.assert_close(model.encode(pixels).latent_dist.mean, latents)


def test_what_the_decoder_learns_does_not_depend_on_the_unit_of_latents():
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    models = [PatchAutoencoder.fit(images) for _ in range(2)]
    unit = 16  # A power of two: floating-point numbers are multiplied by it without rounding.
    with torch.no_grad():
        models[1].encoder.weight *= unit
        models[1].encoder.bias *= unit
        models[1].decoder.weight /= unit
    models[1].register_to_config(scaling_factor=models[1].config.scaling_factor / unit)
    models[1].refiner.load_state_dict(models[0].refiner.state_dict())
    for model in models:
        model.learn_to_refine(images, num_steps=20, seed=0)
    decoded = [m.decode(m.encode(images).latent_dist.mean).sample for m in models]
    torch.testing.assert_close(decoded[0], decoded[1])


def test_it_is_saved_and_loaded_like_a_diffusers_model(tmp_path):
    images = torch.rand(4, 3, 8, 8)
    model = PatchAutoencoder.fit(images)
    model.learn_to_refine(images, num_steps=2, seed=0)
    model.save_pretrained(tmp_path)
    again = PatchAutoencoder.from_pretrained(tmp_path)
    torch.testing.assert_close(
        again.encode(images).latent_dist.mean, model.encode(images).latent_dist.mean
    )
    latents = model.encode(images).latent_dist.mean
    torch.testing.assert_close(again.decode(latents).sample, model.decode(latents).sample)
    assert again.config.scaling_factor == model.config.scaling_factor


def test_pixels_round_trip():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    assert (to_uint8(pixel_values(images)) == images).all()
