"""How large a run's data sets are, before they are ingested."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data.artifacts.digests import DigestMemory
from data.ingest.options import IngestConfig, ScenesConfig, SplitConfig, UnlabelledConfig
from tasks.execution.graph import Graph, Step

_LOOKED_AT = 1000
"""Image files of a folder whose sizes are averaged."""


@dataclass(frozen=True, slots=True)
class DataSize:
    """A data set, as far as work depends on it.

    Attributes:
        images: by split.
        pixels: of an image.
        file_bytes: of an image's file.
        objects: in an image, stuff included.
        is_drawn: whether the project makes the images.
    """

    images: Mapping[str, int]
    pixels: float
    file_bytes: float
    objects: float
    is_drawn: bool = False


COCO = DataSize({"train": 118_287, "val": 5_000}, 640 * 480, 163_000, 13.0)
"""COCO 2017 with stuff: counts of its paper and of docs/method.md; train2017.zip has 19.3 GB."""


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
            return _of_files({"unlabelled": len(options.file_names())}, options.root, 0)
        return _of_scenes({"unlabelled": options.num_scenes}, options.size)
    if not isinstance(options, IngestConfig):
        raise TypeError(options)
    if not options.splits:
        scenes: ScenesConfig = options.scenes
        counts = {"train": scenes.num_train, "val": scenes.num_val, "spare": scenes.num_spare}
        return _of_scenes(counts, scenes.size)
    counts = {name: _num_images(split, digests) for name, split in options.splits.items()}
    return _of_files(counts, options.splits["train"].images, COCO.objects)


def _num_images(split: SplitConfig, digests: DigestMemory) -> int:
    from data.ingest.source import image_names  # noqa: PLC0415  # loads what Scenes need not

    return len({name for path in split.instance_files for name in image_names(path, digests)})


def _of_scenes(counts: Mapping[str, int], side: int) -> DataSize:
    return DataSize(counts, side**2, side**2, _SCENE_OBJECTS, is_drawn=True)


def _of_files(counts: Mapping[str, int], folder: Path, objects: float) -> DataSize:
    """The user's: the average size of the first files; pixels in proportion to COCO's."""
    files = islice((path for path in folder.rglob("*") if path.is_file()), _LOOKED_AT)
    sizes = [path.stat().st_size for path in files]
    mean = sum(sizes) / len(sizes) if sizes else COCO.file_bytes
    return DataSize(counts, COCO.pixels * mean / COCO.file_bytes, mean, objects)
