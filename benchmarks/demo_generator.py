"""The demo's generator, untrained, and a few hundred of its images: what the benchmarks share."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, ScenesConfig
from data.layouts.layout import Layout, read_layouts
from data.layouts.prompts import LocationGrid
from data.vocabulary.images import read_square
from data.vocabulary.tables import Dataset
from flows.run_config import build_run
from models.generator.modules import Generator, create_base_model, prepare_generator
from models.generator.options import GeneratorConfig, NewModelConfig


@dataclass(frozen=True, slots=True)
class Demo:
    """Layouts of Scenes images, and what makes equal generators."""

    config: GeneratorConfig
    dataset: Dataset
    layouts: list[Layout]
    image_paths: dict[int, Path]
    folder: Path

    def new_generator(self, grid_side: int | None = None) -> Generator:
        """Make a generator; all have the same random weights."""
        config, shape = self.config, self.config.base_model
        if not isinstance(shape, NewModelConfig):
            raise TypeError("the demo makes its own base model")
        images = np.stack(
            [read_square(path, config.resolution) for path in self.image_paths.values()]
        )
        names = [item.name for item in self.dataset.categories]
        side = grid_side or config.location_grid
        return prepare_generator(
            create_base_model(shape, images, names, config.seed),
            self.dataset.categories,
            config.layout_conditioning,
            LocationGrid(side, side, config.binning),
            config.overflow,
            resolution=config.resolution,
        )


@contextmanager
def demo(num_images: int = 256, **options: object) -> Iterator[Demo]:
    """Draw the images into a temporary folder.

    Args:
        options: of the generator, over the preset's.
    """
    run = build_run("demo", {"train_generator": options})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest(IngestConfig(scenes=ScenesConfig(num_train=num_images, num_val=1)), folder)
        dataset = Dataset(folder)
        yield Demo(
            config=run.train_generator,
            dataset=dataset,
            layouts=read_layouts(dataset, None, "train"),
            image_paths=dict(dataset.image_paths("train")),
            folder=folder,
        )
