"""How large a run's data sets are, before they are ingested."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from data.artifacts.digests import DigestMemory
from data.ingest.options import IngestConfig, ScenesConfig, TileConfig, UnlabelledConfig
from tasks.execution.graph import Graph, Step

if TYPE_CHECKING:
    from data.ingest.source import ObjectCounts

_LOOKED_AT = 200
"""Image files whose sizes are averaged."""


@dataclass(frozen=True, slots=True)
class DataSize:
    """A data set, as far as work depends on it.

    Attributes:
        images: by split.
        pixels: of an image.
        file_bytes: of an image's file.
        objects: in an image, stuff included.
        layouts: images by split that have a thing; None: nearly all do.
        is_drawn: whether the project makes the images.
        whole: the data set whose images were cut into these, which are tiles.
    """

    images: Mapping[str, int]
    pixels: float
    file_bytes: float
    objects: float
    layouts: Mapping[str, float] | None = None
    is_drawn: bool = False
    whole: "DataSize | None" = None


COCO = DataSize({"train": 118_287, "val": 5_000}, 640 * 480, 163_000, 13.0)
"""COCO 2017 with stuff: counts of its paper and of docs/method.md; train2017.zip has 19.3 GB."""

PNG_BYTES = 2.2
"""Of a pixel in a file: a generated image of 64 × 64 has 9 kB; of a photograph an assumption."""

_SCENE_OBJECTS = 8.0
"""In a Scene, stuff included."""


def data_sizes(graph: Graph, digests: DigestMemory, *, given: bool) -> dict[str, DataSize]:
    """Sizes by the reference of the step that ingests.

    Args:
        digests: remember what files say, so that they are read once.
        given: whether there is a data set; else it is COCO 2017.
    """
    kinds = {"ingest", "ingest-unlabelled"}
    return {
        step.identity.reference: _size(step, digests) if given else COCO
        for step in graph
        if step.kind.name in kinds
    }


def _size(step: Step, digests: DigestMemory) -> DataSize:
    options = step.options
    if isinstance(options, UnlabelledConfig):
        if options.folders:
            names = options.file_names()
            files = (options.root / name for name in names)
            return _of_files({"unlabelled": len(names)}, files, 0, None)
        return _of_scenes({"unlabelled": options.num_scenes}, options.size)
    if not isinstance(options, IngestConfig):
        raise TypeError(options)
    if not options.splits:
        scenes: ScenesConfig = options.scenes
        counts = {"train": scenes.num_train, "val": scenes.num_val, "spare": scenes.num_spare}
        return _of_scenes(counts, scenes.size)
    from data.ingest.source import image_names, object_counts  # noqa: PLC0415  # loads what Scenes need not

    found = {
        name: dict.fromkeys(chain(*(image_names(path, digests) for path in split.instance_files)))
        for name, split in options.splits.items()
    }
    files = (options.splits["train"].images / name for name in found["train"])
    counts = {name: len(names) for name, names in found.items()}
    things: dict[str, ObjectCounts] = {
        name: object_counts(split.instance_files, digests) for name, split in options.splits.items()
    }
    stuff = [object_counts(split.stuff_files, digests) for split in options.splits.values()]
    objects = sum(item.objects for item in [*things.values(), *stuff])
    size = _of_files(counts, files, objects / max(sum(counts.values()), 1), options.tile)
    return replace(size, layouts=_layouts(size, things))


def _of_scenes(counts: Mapping[str, int], side: int) -> DataSize:
    return DataSize(counts, side**2, side**2, _SCENE_OBJECTS, is_drawn=True)


def _of_files(
    counts: Mapping[str, int], files: Iterable[Path], objects: float, tile: TileConfig | None
) -> DataSize:
    """The user's: the average of the first files that are images; COCO's where there is none."""
    from data.vocabulary.images import shown_size  # noqa: PLC0415  # likewise

    seen = ((path, shown_size(path)) for path in islice(files, _LOOKED_AT))
    sizes = {path: size for path, size in seen if size}
    if not sizes:
        return replace(COCO, images=counts, objects=objects)
    pixels = fmean(width * height for width, height in sizes.values())
    whole = DataSize(counts, pixels, fmean(path.stat().st_size for path in sizes), objects)
    return _in_tiles(whole, list(sizes.values()), tile) if tile else whole


def _layouts(size: DataSize, things: Mapping[str, "ObjectCounts"]) -> dict[str, float]:
    """Images that have a thing; of tiles as many as do where things lie anywhere: 1 - exp(-things a tile)."""
    if size.whole is None:
        return {name: min(things[name].images, count) for name, count in size.images.items()}
    share, images = size.pixels / size.whole.pixels, size.whole.images
    return {
        name: -count * math.expm1(-share * things[name].objects / max(images[name], 1))
        for name, count in size.images.items()
    }


def _in_tiles(whole: DataSize, sizes: Sequence[tuple[int, int]], tile: TileConfig) -> DataSize:
    """Tiles of images, as many as there are in images of these sizes."""
    from data.ingest.tiles import tile_boxes  # noqa: PLC0415  # likewise

    tiles = [
        (right - left) * (bottom - top)
        for width, height in sizes
        for left, top, right, bottom in tile_boxes(
            width, height, size=tile.size, overlap=tile.overlap
        ).tolist()
    ]
    per_image, pixels = len(tiles) / len(sizes), fmean(tiles)
    return DataSize(
        images={name: round(count * per_image) for name, count in whole.images.items()},
        pixels=pixels,
        file_bytes=pixels * PNG_BYTES,
        objects=whole.objects * pixels / whole.pixels,
        whole=whole,
    )
