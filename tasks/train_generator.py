"""Stage `train-generator`: fine-tune the layout-conditioned diffusion model."""

import logging

import numpy as np
import pyarrow.parquet as pq

from data.images import read_square
from data.layouts import Layout, evenly_spaced, read_layouts
from data.prompts import LocationGrid
from data.tables import Dataset
from models.config import GeneratorConfig, NewModelConfig
from models.generator import (
    Generator,
    create_base_model,
    load_base_model,
    prepare_generator,
    save_base_model,
    save_generator,
)
from models.training import (
    Metrics,
    read_metrics,
    train_generator,
)
from models.training_set import encode_training_set
from tasks.cards import markdown_table, write_card
from tasks.context import StepContext, Summary

logger = logging.getLogger(__name__)

_AUTOENCODER_IMAGES = 1000


def run(context: StepContext[GeneratorConfig]) -> Summary:
    """Train and export a diffusers-format folder, with the loss curves beside it."""
    config = context.config
    dataset = Dataset(context.inputs["ingest"])
    layouts = _training_layouts(context, config, dataset)
    generator = _new_generator(context, dataset, layouts)
    num_omitted = _count_omitted(generator, layouts)
    training_set = encode_training_set(
        generator,
        layouts,
        dict(dataset.image_paths("train")),
        context.work / "latents.npy",
    )

    def on_step(metrics: Metrics) -> None:
        status = f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} images/s"
        context.progress(int(metrics["step"]), config.num_steps, status)

    train_generator(generator, training_set, config, context.work, context.key, on_step)
    save_generator(generator, context.out / "generator")
    metrics = read_metrics(context.work / "metrics.jsonl")
    (context.out / "metrics.jsonl").write_text((context.work / "metrics.jsonl").read_text())
    rows = _summary_rows(metrics)
    write_card(
        context.out,
        "Generator training",
        f"{len(layouts)} images, {num_omitted} objects left out of prompts that were too long.",
        markdown_table(rows),
    )
    return {"num_images": len(layouts), "objects_omitted": num_omitted, "progress": rows}


def _training_layouts(
    context: StepContext[GeneratorConfig], config: GeneratorConfig, dataset: Dataset
) -> list[Layout]:
    attributes = pq.read_table(context.inputs["extract-attributes"] / "attributes.parquet")
    layouts = read_layouts(
        dataset,
        attributes,
        "train",
        min_things=1,
        max_things=config.max_objects,
        min_area_fraction=config.min_area_fraction,
    )
    logger.info("%d of the training images have a usable layout", len(layouts))
    return layouts


def _new_generator(
    context: StepContext[GeneratorConfig], dataset: Dataset, layouts: list[Layout]
) -> Generator:
    config = context.config
    grid = LocationGrid(config.location_grid, config.location_grid, config.binning)
    return prepare_generator(
        load_base_model(_base_model_name(context, dataset, layouts)),
        dataset.categories,
        config.layout_conditioning,
        grid,
        config.overflow,
        resolution=config.resolution,
        perception_attributes=config.perception_attributes,
    )


def _base_model_name(
    context: StepContext[GeneratorConfig], dataset: Dataset, layouts: list[Layout]
) -> str:
    """The folder or hub id of the base model; a new model is made once, in the work folder."""
    shape, folder = context.config.base_model, context.work / "base_model"
    if not isinstance(shape, NewModelConfig):
        return shape
    if not folder.exists():
        paths = dict(dataset.image_paths("train"))
        chosen = evenly_spaced(layouts, _AUTOENCODER_IMAGES)
        size = context.config.resolution
        images = np.stack([read_square(paths[item.image_id], size) for item in chosen])
        names = [item.name for item in dataset.categories]
        unfinished = context.work / "base_model.tmp"
        save_base_model(create_base_model(shape, images, names, context.config.seed), unfinished)
        unfinished.rename(folder)
    return str(folder)


def _count_omitted(generator: Generator, layouts: list[Layout]) -> int:
    omitted = {layout.image_id: generator.encoder.prompt(layout).omitted for layout in layouts}
    omitted = {image_id: indices for image_id, indices in omitted.items() if indices}
    for image_id, indices in omitted.items():
        logger.warning("image %d: objects %s do not fit the prompt", image_id, list(indices))
    return sum(map(len, omitted.values()))


def _summary_rows(metrics: list[Metrics], num_rows: int = 10) -> list[dict[str, float]]:
    """Average the metrics over equal stretches of the training."""
    rows = []
    for part in np.array_split(np.array(metrics, dtype=object), num_rows):
        if len(part):
            names = [name for name in part[-1] if name != "step"]
            means = {name: float(np.mean([item[name] for item in part])) for name in names}
            rows.append({"step": int(part[-1]["step"]), **means})
    return rows
