"""What the generator is trained on: latents and masks on the latent grid, in memory-mapped files."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from data.errors import InvalidDataset
from data.layouts.layout import Layout
from data.progress import Progress, silent
from data.vocabulary.images import ResizeFilter, read_square
from data.vocabulary.masks import decode_mask
from models.devices import release_memory
from models.generator.autoencoder import pixel_values
from models.generator.modules import StableDiffusion

_CHUNK = 16
"""Images worked on at once; what waits of them is far below the 64 MB of shared memory that Docker gives."""

_NUM_READERS = 8
"""Threads that read the images of a batch that is encoded online."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Layouts with the latents of their images and their masks.

    Attributes:
        layouts: one per image.
        model: whose autoencoder encodes.
        image_paths: image id to file.
        resize_filter: by which images become squares.
        moments: latent mean and log-variance, (2, num_images, 2 × channels, height, width), row 1 of
            the mirrored images; None to encode whenever an image is used.
        coverage: share of each cell that an object covers, 0 to 255, (num_objects, height, width).
        first_objects: place of each image's first object in `coverage`, then the number of objects.
    """

    layouts: Sequence[Layout]
    model: StableDiffusion
    image_paths: dict[int, Path]
    resize_filter: ResizeFilter
    moments: np.ndarray | None
    coverage: np.ndarray
    first_objects: np.ndarray

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = self.model.unet.config.sample_size
        return self.model.vae.config.latent_channels, size, size

    def latents(
        self,
        indices: Sequence[int],
        flips: Bool[Tensor, " batch"],
        noise: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Scaled latents z = s (μ + σ noise) of images or their mirror images."""
        if self.moments is None:
            moments = self._encode(indices, flips)
        else:
            moments = torch.from_numpy(self.moments[flips.long().numpy(), list(indices)])
        mean, logvar = moments.chunk(2, dim=1)
        return (mean + (0.5 * logvar).exp() * noise) * self.model.vae.config.scaling_factor

    def masks(self, index: int) -> UInt8[Tensor, "objects height width"]:
        """Share of each cell that an image's objects cover, 0 to 255."""
        first, last = self.first_objects[index : index + 2]
        return torch.from_numpy(np.array(self.coverage[first:last]))

    def _encode(self, indices: Sequence[int], flips: Bool[Tensor, " batch"]) -> Tensor:
        files = [self.image_paths[self.layouts[index].image_id] for index in indices]
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            square = partial(
                read_square, resolution=self.model.resolution, resize_filter=self.resize_filter
            )
            read = readers.map(square, files)
        images = pixel_values(np.stack(list(read)))
        pixels = torch.where(flips[:, None, None, None], images.flip(-1), images)
        return self.model.latent_moments(pixels)


def build_training_set(
    model: StableDiffusion,
    layouts: Sequence[Layout],
    image_paths: dict[int, Path],
    folder: Path,
    latents: Literal["cached", "online"] = "cached",
    on_progress: Progress = silent,
    num_workers: int = 0,
    resize_filter: ResizeFilter = "bicubic",
) -> TrainingSet:
    """Encode the images of all layouts and decode their masks into memory-mapped files, once.

    Existing files are used as they are and unfinished ones gone on with, so they must be of the same
    layouts and autoencoder. Images are squashed to the square, not cropped [G]. A box without mask
    uses its rectangle.

    Args:
        image_paths: image id to file.
        folder: for the files, which get their names when they are complete.
        latents: `online` leaves the encoding to the training.
        num_workers: processes that read images ahead of the encoding; 0: none.
        resize_filter: by which images become squares.

    Raises:
        InvalidDataset: there is no layout, or an image cannot be read.
    """
    if not layouts:
        raise InvalidDataset("no image has a layout to train on: loosen the rule for layouts")
    folder.mkdir(exist_ok=True)
    first_objects = np.cumsum([0, *(len(layout.boxes) for layout in layouts)])
    size = model.unet.config.sample_size

    def masks(first: int) -> Iterator[Part]:
        for images in _chunks(first, len(layouts)):
            found = torch.cat([latent_masks(layout, size) for layout in layouts[images]])
            place = np.s_[first_objects[images.start] : first_objects[images.stop]]
            yield place, (found * 255).round().byte().numpy()

    def encoded(first: int) -> Iterator[Part]:
        files = [image_paths[layout.image_id] for layout in layouts[first:]]
        squares = _Squares(files, model.resolution, resize_filter)
        chunks = DataLoader(squares, _CHUNK, num_workers=num_workers, collate_fn=np.stack)
        for images, read in zip(_chunks(first, len(layouts)), chunks, strict=True):
            pixels = pixel_values(read)
            both = torch.stack([model.latent_moments(x) for x in (pixels, pixels.flip(-1))])
            yield np.s_[:, images], both.numpy()

    coverage, moments = folder / "masks.npy", folder / "latents.npy"
    if not coverage.exists():
        shape: tuple[int, ...] = (int(first_objects[-1]), size, size)
        _fill(coverage, np.uint8, shape, masks, len(layouts), on_progress, "images' masks")
    if latents == "cached" and not moments.exists():
        shape = (2, len(layouts), 2 * model.vae.config.latent_channels, size, size)
        _fill(moments, np.float32, shape, encoded, len(layouts), on_progress, "images encoded")
        model.vae.to("cpu")
        release_memory()
    return TrainingSet(
        layouts=layouts,
        model=model,
        image_paths=image_paths,
        resize_filter=resize_filter,
        moments=np.load(moments, mmap_mode="r") if latents == "cached" else None,
        coverage=np.load(coverage, mmap_mode="r"),
        first_objects=first_objects,
    )


Part = tuple[Any, np.ndarray]
"""Place in an array, and what stands there."""


def _fill(
    path: Path,
    dtype: type,
    shape: tuple[int, ...],
    parts: Callable[[int], Iterator[Part]],
    num_images: int,
    on_progress: Progress,
    unit: str,
) -> None:
    """Fill an array file some images at a time; after a kill it goes on with those that are left.

    Args:
        parts: what stands there from an image on, chunk by chunk.
        unit: what is counted.
    """
    temporary, record = path.with_suffix(".tmp"), path.with_suffix(".done")
    if not (temporary.exists() and record.exists()):
        record.write_bytes(b"")
    done = record.stat().st_size * _CHUNK  # it grows by one byte a chunk
    mode: Literal["r+", "w+"] = "r+" if done else "w+"
    array = np.lib.format.open_memmap(temporary, mode=mode, dtype=dtype, shape=shape)
    with temporary.open("r+b") as file:  # a sparse file on a full disk would end the process
        os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
    for place, values in parts(done):
        array[place] = values
        array.flush()
        with record.open("ab") as file:
            file.write(b".")
        done = min(done + _CHUNK, num_images)
        on_progress(done, num_images, unit)
    record.unlink()
    temporary.replace(path)


def _chunks(first: int, num_images: int) -> Iterator[slice]:
    for start in range(first, num_images, _CHUNK):
        yield slice(start, min(start + _CHUNK, num_images))


@dataclass(frozen=True, slots=True)
class _Squares(Dataset[np.ndarray]):
    """Images squashed to squares, uint8 (resolution, resolution, 3)."""

    paths: Sequence[Path]
    resolution: int
    resize_filter: ResizeFilter

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_square(self.paths[index], self.resolution, self.resize_filter)


def latent_masks(layout: Layout, size: int) -> Float[Tensor, "objects size size"]:
    """Share of each cell of a square grid that every object covers, in [0, 1]."""
    masks = torch.zeros(len(layout.boxes), size, size)
    for index, counts in enumerate(layout.masks):
        if counts is None:
            masks[index] = _rectangle(layout, index, size)
        else:
            mask = decode_mask(counts, layout.height, layout.width)
            pixels = torch.from_numpy(mask).float()[None, None]
            masks[index] = functional.adaptive_avg_pool2d(pixels, size)[0, 0]
    return masks


def _rectangle(layout: Layout, index: int, size: int) -> Float[Tensor, "size size"]:
    """The same of a box's pixels, as the pooling of a mask gives it, without the mask."""
    left, top = np.floor(layout.boxes[index, :2]).astype(int)
    right, bottom = np.ceil(layout.boxes[index, 2:]).astype(int)
    rows, height = _overlaps(top, bottom, layout.height, size)
    columns, width = _overlaps(left, right, layout.width, size)
    return torch.outer(rows, columns) / height[:, None] / width


def _overlaps(start: int, end: int, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Pixels from start to end in each of the windows that a side is pooled in, and of these themselves."""
    cells = np.arange(size)
    first, last = cells * length // size, -((cells + 1) * -length // size)
    inside = np.minimum(last, end) - np.maximum(first, start)
    return torch.tensor(inside).clamp(min=0).float(), torch.tensor(last - first).float()
