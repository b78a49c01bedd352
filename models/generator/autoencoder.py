"""A small autoencoder with diffusers' interface: principal components of patches, refined by convolutions."""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor, nn

from data.progress import Progress, silent
from models.devices import default_device
from models.generator.options import DECODER_BATCH_SIZE

_CERTAIN_LOGVAR = -30.0

_REFINER_WIDTH, _REFINER_RATE, _REFINER_INTERVAL = 48, 2e-3, 100

_MOST_NOISE = 0.4
"""Standard deviation; scaled latents have 1."""


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Encode each image patch by its first principal components; fitted in a second.

    Every component is divided by the square root of its standard deviation, halfway between keeping
    the image's spectrum and whitening it. Behaves like `diffusers.AutoencoderKL` with zero variance.
    Decoding is linear too, plus convolutions that are zero until they `learn_to_refine`.

    Args:
        patch_size: side of the patches in pixels; the spatial down-sampling factor.
        latent_channels: number of components kept.
        scaling_factor: factor that brings the latents to unit variance.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: int = 4,
        latent_channels: int = 12,
        in_channels: int = 3,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        num_values = in_channels * patch_size**2
        self.encoder = nn.Conv2d(in_channels, latent_channels, patch_size, stride=patch_size)
        self.decoder = nn.ConvTranspose2d(
            latent_channels, in_channels, patch_size, stride=patch_size, bias=False
        )
        self.mean_patch = nn.Parameter(torch.zeros(num_values), requires_grad=False)
        layers: list[nn.Module] = []
        for channels in (latent_channels, _REFINER_WIDTH, _REFINER_WIDTH):
            layers += [nn.Conv2d(channels, _REFINER_WIDTH, 3, padding=1), nn.SiLU()]
        last = nn.Conv2d(_REFINER_WIDTH, num_values, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.refiner = nn.Sequential(*layers, last, nn.PixelShuffle(patch_size))

    @classmethod
    def fit(
        cls,
        pixel_values: Float[Tensor, "batch channels height width"],
        patch_size: int = 4,
        latent_channels: int = 12,
    ) -> "PatchAutoencoder":
        """Fit to images in [-1, 1] whose sides are multiples of `patch_size`."""
        channels = pixel_values.shape[1]
        patches = nn.functional.unfold(pixel_values, patch_size, stride=patch_size)
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1]).double()
        mean = rows.mean(dim=0)
        variances, components = torch.linalg.eigh(torch.cov((rows - mean).T))
        variances = variances.flip(0)[:latent_channels].clamp_min(1e-12)
        components = components.flip(1)[:, :latent_channels].T
        # An eigenvector's sign is arbitrary; fix it, so that equal images give equal latents.
        components = (
            components * torch.sign(components @ torch.arange(1.0, len(mean) + 1).double())[:, None]
        )
        scales = variances**0.25
        scaling_factor = float(1 / torch.sqrt((variances / scales**2).mean()))
        model = cls(patch_size, latent_channels, channels, scaling_factor)
        shape = (latent_channels, channels, patch_size, patch_size)
        encoder, decoder = components / scales[:, None], components * scales[:, None]
        with torch.no_grad():
            model.encoder.weight.copy_(encoder.reshape(shape))
            model.encoder.bias.copy_(-encoder @ mean)
            model.decoder.weight.copy_(decoder.reshape(shape))
            model.mean_patch.copy_(mean)
        return model

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> SimpleNamespace:
        """Return an object with `latent_dist`, as `AutoencoderKL.encode` does."""
        mean = self.encoder(x)
        moments = torch.cat([mean, torch.full_like(mean, _CERTAIN_LOGVAR)], dim=1)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z: Float[Tensor, "batch latent rows columns"]) -> SimpleNamespace:
        """Return an object with `sample`, as `AutoencoderKL.decode` does."""
        size = self.config.patch_size
        patch = self.mean_patch.view(1, -1, size, size)
        linear = self.decoder(z) + patch.tile(1, 1, *z.shape[2:])
        return SimpleNamespace(sample=linear + self.refiner(z * self.config.scaling_factor))

    def learn_to_refine(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        num_steps: int,
        seed: int,
        progress: Progress = silent,
    ) -> None:
        """Train the decoder to take out the noise that drawn latents are never quite free of.

        Noise of a deviation between 0 and 0.4 is added to an image's scaled latents, as Zheng et al. do
        (Representation Autoencoders, 2025); the loss is the mean absolute error.

        Args:
            pixel_values: images in [-1, 1] whose sides are multiples of `patch_size`.
            num_steps: of 32 images each.
            progress: called every hundredth step.
        """
        device, generator = default_device(), torch.Generator().manual_seed(seed)
        self.to(device).requires_grad_(requires_grad=False)
        self.refiner.requires_grad_()
        optimizer = torch.optim.Adam(self.refiner.parameters(), _REFINER_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for step in range(num_steps):
            chosen = torch.randint(len(pixel_values), (DECODER_BATCH_SIZE,), generator=generator)
            images = pixel_values[chosen].to(device)
            latents = self.encode(images).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator)
            noise *= _MOST_NOISE * torch.rand(len(noise), 1, 1, 1, generator=generator)
            noisy = latents + noise.to(device) / self.config.scaling_factor
            loss = nn.functional.l1_loss(self.decode(noisy).sample, images)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if (step + 1) % _REFINER_INTERVAL == 0:
                progress(step + 1, num_steps, "steps of the decoder")


def pixel_values(images: np.ndarray) -> Float[Tensor, "batch 3 height width"]:
    """Turn uint8 images (batch, height, width, 3) into tensors in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(values: Float[Tensor, "batch 3 height width"]) -> np.ndarray:
    """Turn tensors in [-1, 1] into uint8 images (batch, height, width, 3)."""
    scaled = ((values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(scaled.permute(0, 2, 3, 1).cpu().numpy())
