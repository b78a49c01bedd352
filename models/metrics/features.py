"""Feature extractors by which real and generated images are compared."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torchmetrics.image.fid import NoTrainInceptionV3

from data.errors import InvalidModel
from data.vocabulary.images import read_square
from models.devices import default_device, full_float32

RESIZE = "squashed, Pillow's bicubic"
"""How images come to the resolution: FIDs by other filters do not compare (Parmar et al. 2022)."""

_BATCH = 64
_PIXELS_AT_ONCE = 1 << 20
"""So many pixels go through the random network at a time: some 300 MB."""

_SEED = 0


class Extractor(Protocol):
    """Maps images to features."""

    @property
    def name(self) -> str:
        """What the numbers are called by."""

    def __call__(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch num_features"]:
        """Map RGB images to features."""


class InceptionFeatures:
    """Pool features of the InceptionV3 that the FID is defined by, as torch-fidelity has it.

    Args:
        weights: torch-fidelity's file, where nothing may be downloaded.

    Raises:
        InvalidModel: the weights cannot be fetched, or the file holds other ones.
    """

    name = "InceptionV3"

    def __init__(self, weights: Path | None = None):
        try:
            # before the network, which runs what a file says, is given it
            if weights:
                torch.load(weights, map_location="cpu", weights_only=True)
            else:
                load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
            network = NoTrainInceptionV3(
                "inception-v3-compat", ["2048"], str(weights) if weights else None
            )
        except (OSError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise InvalidModel(
                f"InceptionV3 of {weights or 'torch-fidelity'} cannot be used, give torch-fidelity's file as "
                f"evaluate.inception_weights or choose the extractor `random`: {error}"
            ) from error
        self._network = network.to(default_device())

    def __call__(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 2048"]:
        """Map RGB images, which the network resizes to 299 × 299, to features."""
        return self._network(images)


class RandomFeatures:
    """Means over the image of a small VGG's responses at three depths, its weights random and fixed.

    Naeem et al. (2020) compare images by a randomly initialised VGG where no classifier was trained on
    the like of them. Here the weights are the same in every run and on every machine.
    """

    name = f"random VGG, seed {_SEED}"

    def __init__(self) -> None:
        convolutions = _fixed_convolutions(torch.Generator().manual_seed(_SEED))
        self._convolutions = [
            (w.to(default_device()), b.to(default_device())) for w, b in convolutions
        ]

    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 123"]:
        """Map RGB images, of 8 pixels a side or more, to features."""
        at_once = max(_PIXELS_AT_ONCE // images[0, 0].numel(), 1)
        return torch.cat([self._features(part.float()) for part in torch.split(images, at_once)])

    def _features(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 123"]:
        means = []
        for weight, bias in self._convolutions:
            responses = functional.relu(functional.conv2d(images, weight, bias, padding=1))
            means.append(responses.mean(dim=(2, 3)))
            images = functional.max_pool2d(responses, 2)
        return torch.cat(means, dim=1)


def _fixed_convolutions(generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases, each scaled to responses of mean 0 and variance 1 on images of noise.

    Mishkin and Matas (2016), algorithm 1, orthogonal weights and layer by layer unit variance. It makes
    faint responses, to detail, count as much as strong ones, to brightness; and it was measured to tell
    real photographs from blurred, noisy, recoloured, compressed and shuffled ones better than weights of
    fixed scale.
    """
    images, convolutions = _pink_noise(generator), []
    weights = [_first_weights(generator)]
    weights += [_orthogonal((32, 27, 3, 3), generator), _orthogonal((64, 32, 3, 3), generator)]
    for weight in weights:
        responses = functional.conv2d(images, weight, padding=1)
        mean, scale = responses.mean(dim=(0, 2, 3)), responses.std(dim=(0, 2, 3))
        convolutions.append((weight / scale[:, None, None, None], -mean / scale))
        standardised = (responses - mean[:, None, None]) / scale[:, None, None]
        images = functional.max_pool2d(functional.relu(standardised), 2)
    return convolutions


def _first_weights(generator: torch.Generator) -> Float[Tensor, "27 3 3 3"]:
    """Three filters of the mean colour, and 24 of the detail about it.

    In real images brightness outweighs detail by far: a filter that sees both sees brightness.
    """
    colour = _orthogonal((3, 3, 1), generator).expand(3, 3, 9)
    detail = _orthogonal((24, 3, 9), generator)
    detail = detail - detail.mean(dim=2, keepdim=True)
    return torch.cat([colour, detail]).view(27, 3, 3, 3)


def _orthogonal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty(shape), generator=generator)


def _pink_noise(generator: torch.Generator) -> Float[Tensor, "64 3 64 64"]:
    """Images of the amplitudes of natural ones, 1/f (Field 1987), and like them of little colour."""
    frequencies = torch.fft.fftfreq(64)
    amplitudes = torch.hypot(frequencies[:, None], frequencies).clamp_min(1 / 64)
    noise = torch.randn(64, 3, 64, 64, generator=generator)
    noise = torch.fft.ifft2(torch.fft.fft2(noise) / amplitudes).real
    grey_and_opponents = torch.tensor([[1, 0.35, 0.1], [1, 0, -0.2], [1, -0.35, 0.1]])
    pixels = torch.einsum("oc,bchw->bohw", grey_and_opponents, noise / noise.std())
    return (128 + 50 * pixels).clamp(0, 255)


@torch.no_grad()
def image_features(
    extractor: Callable[[Tensor], Tensor],
    paths: Sequence[Path],
    resolution: int,
) -> Float[np.ndarray, "images features"]:
    """Features of image files, float32.

    Args:
        resolution: images are squashed to this square, pixels.
    """
    parts = []
    for start in range(0, len(paths), _BATCH):
        images = [read_square(path, resolution) for path in paths[start : start + _BATCH]]
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(default_device())
        with full_float32("no"):
            parts.append(extractor(batch).float().cpu().numpy())
    return np.concatenate(parts)
