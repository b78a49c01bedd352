"""What the generator is trained on: latents encoded once, masks on the latent grid."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from data.errors import InvalidDataset
from data.images import read_square
from data.layouts import Layout
from data.masks import decode_mask
from models.autoencoder import pixel_values
from models.devices import default_device
from models.generator import Generator

_ENCODE_BATCH = 32


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Layouts with their latents, both orientations, and masks on the latent grid.

    Attributes:
        layouts: one per image.
        latents: scaled means, (2, num_images, channels, height, width); row 1 is mirrored.
        masks: share of each cell that the object covers, per image (num_objects, height, width).
    """

    layouts: Sequence[Layout]
    latents: Tensor
    masks: Sequence[Tensor]


@torch.no_grad()
def encode_training_set(
    generator: Generator,
    layouts: Sequence[Layout],
    image_paths: dict[int, Path],
    cache: Path,
) -> TrainingSet:
    """Encode the images of all layouts into a memory-mapped file, and decode their masks.

    An existing file is used as it is, so it must be of the same images and autoencoder.

    Images are squashed to the square, not cropped [G]. A box without mask uses its rectangle.

    Args:
        image_paths: image id to file.
        cache: file for the latents; appears when it is complete.

    Raises:
        InvalidDataset: there is no layout, or an image cannot be read.
    """
    if not layouts:
        raise InvalidDataset("no image has a layout to train on: loosen max_objects")
    size = generator.model.unet.config.sample_size
    if not cache.exists():
        _encode(generator, layouts, image_paths, cache)
    latents = torch.from_numpy(np.load(cache, mmap_mode="c"))
    return TrainingSet(layouts, latents, [latent_masks(layout, size) for layout in layouts])


def _encode(
    generator: Generator,
    layouts: Sequence[Layout],
    image_paths: dict[int, Path],
    cache: Path,
) -> None:
    device = default_device()
    vae = generator.model.vae.to(device).eval()
    size = generator.model.unet.config.sample_size
    resolution = size * generator.model.vae_scale_factor
    shape = (2, len(layouts), vae.config.latent_channels, size, size)
    temporary = cache.with_suffix(".tmp")
    latents = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
    with temporary.open("r+b") as file:  # a sparse file on a full disk would end the process
        os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
    for start in range(0, len(layouts), _ENCODE_BATCH):
        batch = layouts[start : start + _ENCODE_BATCH]
        images = np.stack([read_square(image_paths[item.image_id], resolution) for item in batch])
        pixels = pixel_values(images).to(device)
        for row, oriented in enumerate((pixels, pixels.flip(-1))):
            encoded = vae.encode(oriented).latent_dist.mean * vae.config.scaling_factor
            latents[row, start : start + len(batch)] = encoded.cpu().numpy()
    latents.flush()
    temporary.replace(cache)


def latent_masks(layout: Layout, size: int) -> Float[Tensor, "objects size size"]:
    """Share of each cell of a square grid that every object covers, in [0, 1]."""
    masks = torch.zeros(len(layout.boxes), size, size)
    for index, counts in enumerate(layout.masks):
        if counts is None:
            mask = np.zeros((layout.height, layout.width), dtype=bool)
            left, top = np.floor(layout.boxes[index, :2]).astype(int)
            right, bottom = np.ceil(layout.boxes[index, 2:]).astype(int)
            mask[top:bottom, left:right] = True
        else:
            mask = decode_mask(counts, layout.height, layout.width)
        pixels = torch.from_numpy(mask).float()[None, None]
        masks[index] = functional.adaptive_avg_pool2d(pixels, size)[0, 0]
    return masks
