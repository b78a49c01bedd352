"""Kind `train-generator`: fine-tune the layout-conditioned diffusion model."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from data.artifacts.files import durable_rename
from data.attributes.options import ATTRIBUTES_NAME
from data.errors import InvalidDataset
from data.layouts.layout import (
    Layout,
    blank_layouts,
    dataset_selection,
    evenly_spaced,
    read_layouts,
)
from data.layouts.options import Protocol
from data.layouts.prompts import LocationGrid
from data.vocabulary.images import read_square
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset
from models.devices import release_memory, settled_precision
from models.generator.modules import (
    Generator,
    StableDiffusion,
    create_base_model,
    load_base_model,
    load_generator,
    prepare_generator,
    save_base_model,
    save_generator,
)
from models.generator.options import GeneratorConfig, NewModelConfig
from models.processes import is_main_process
from models.training.loop import train_generator
from models.training.memory import fitted
from models.training.metrics_file import (
    METRICS_NAME,
    TIMED,
    Metrics,
    read_metrics,
    write_metrics,
)
from models.training.probe import GeneratorProbe
from models.training.state import TrainingState
from models.training.training_set import TrainingSet, build_training_set
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.execution.data_parallel import join_by_command, train_in_processes
from tasks.pages.cards import markdown_picture, markdown_table, write_card

logger = logging.getLogger(__name__)

_AUTOENCODER_IMAGES = 1000
_ROWS_SHOWN = 10
_SHOWN = ("step", "loss_ldm", "loss_perception", "mask_iou", "grad_norm")
_PROBED = ("step", "layout_recall", "layout_recall_shuffled")
_CAPTIONS = {
    "step": "Validation layouts, sampled in training",
    "masks": "True masks above, predicted ones below",
}

Context = StepContext[GeneratorConfig]


@dataclass(frozen=True, slots=True)
class _Images:
    """What is trained on: labelled images, or in a pre-training unlabelled ones.

    Attributes:
        dataset: with the labels, or with what a detector found.
        split: of it.
        layouts: of the images that the protocol chooses; without boxes where nothing is known of them.
        counts: of what it chooses and leaves out.
    """

    dataset: Dataset
    split: Split
    layouts: list[Layout]
    counts: dict[str, int]

    @property
    def paths(self) -> dict[int, Path]:
        """Image id to file."""
        return dict(self.dataset.image_paths(self.split))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What the training starts from; each process makes it for itself, from the same files."""

    generator: Generator
    training_set: TrainingSet


def run(context: Context) -> Summary:
    """Train and export a diffusers-format folder, with loss curves and probes beside it."""
    precision = settled_precision(context.work, context.options.mixed_precision)
    images = _images(context)
    options = context.options.in_steps(len(images.layouts))
    options = options.model_copy(update={"mixed_precision": precision})
    context = replace(context, options=options)
    generator = _new_generator(context, images)
    context, worked = _fitted(context, generator)
    prepared = _prepare(context, images, generator)
    logger.info("%d images are trained on", len(images.layouts))
    omitted = _count_omitted(generator, images.layouts)
    rectangles = sum(item.masks.count(None) for item in images.layouts)
    if options.num_processes == 1:
        _train(context, prepared)
    else:
        del prepared, generator  # each process has its own
        release_memory()
        train_in_processes(context, _train_as_one_of_several, __name__, options.num_steps)
    metrics = read_metrics(context.work / METRICS_NAME)
    timeless = [{k: v for k, v in item.items() if k not in TIMED} for item in metrics]
    write_metrics(context.out / METRICS_NAME, timeless)
    rows = _summary_rows(metrics)
    write_card(
        context.out,
        "Generator training",
        f"{omitted} objects left out of prompts that were too long; "
        f"{rectangles} objects without mask, whose rectangle stands for it.",
        f"## Layouts\n\n{markdown_table([images.counts])}",
        f"## Optimiser\n\n{markdown_table([worked])}",
        markdown_table([{name: row[name] for name in _SHOWN if name in row} for row in rows]),
        "## Are things where the layout has them? And where another layout has some?",
        markdown_table(
            [{name: row[name] for name in _PROBED} for row in metrics if _PROBED[-1] in row]
        ),
        *_pictures(context.out),
    )
    return {
        "layouts": images.counts,
        "objects_omitted": omitted,
        "objects_without_mask": rectangles,
        "precision": precision,
        "optimizer": worked,
        "progress": rows,
        "metrics": {"images_per_second": rows[-1]["images_per_second"]},
        WARNINGS: [f"{omitted} objects are in no prompt, which were too long"] if omitted else [],
    }


def _fitted(context: Context, generator: Generator) -> tuple[Context, dict[str, Any]]:
    """Settle how a batch is worked on; returns it with the rates, for people."""
    options, found = fitted(generator, context.options)
    rate, text_rate = options.rates
    facts = {
        "images a step": options.batch_size,
        "at once": options.batch_size // options.num_processes // options.num_parts,
        "processes": options.num_processes,
        "gradient checkpointing": options.gradient_checkpointing is True,
        "learning rate": rate,
        "of the text encoder": text_rate,
    }
    if options.lora_rank:
        facts["of the adapters"] = options.lora_learning_rate
    if found:
        facts["counted memory, GB"] = found.total / 1e9
        logger.info("%s", ", ".join(f"{name}: {value}" for name, value in facts.items()))
    return replace(context, options=options), facts


def _images(context: Context) -> _Images:
    """The images of the pre-training where there are unlabelled ones among the inputs."""
    inputs, protocol = context.inputs, context.options.protocol
    if "unlabelled" not in inputs:
        dataset = Dataset(inputs["ingest"])
        attributes = pq.read_table(inputs["attributes"] / ATTRIBUTES_NAME)
        return _chosen(dataset, "train", attributes, protocol)
    if "pseudo-labels" not in inputs:
        dataset = Dataset(inputs["unlabelled"])
        layouts = blank_layouts(dataset, "unlabelled")
        return _Images(dataset, "unlabelled", layouts, {"images": len(layouts)})
    dataset = Dataset(inputs["pseudo-labels"], images_of=inputs["unlabelled"])
    return _chosen(dataset, "unlabelled", None, protocol)


def _chosen(
    dataset: Dataset, split: Split, attributes: pa.Table | None, protocol: Protocol
) -> _Images:
    counts = dataset_selection(dataset, split, protocol).counts()
    if not counts["images"]:
        raise InvalidDataset(
            f"no {split} image has a layout to train on, of {counts}: loosen layouts, or the rule of "
            "train_generator.layouts"
        )
    return _Images(dataset, split, read_layouts(dataset, attributes, split, protocol), counts)


def _prepare(context: Context, images: _Images, generator: Generator) -> _Prepared:
    training_set = build_training_set(
        generator.model,
        images.layouts,
        images.paths,
        context.work / "training_set",
        context.options.latents,
        context.progress,
        context.options.num_workers,
        context.options.resize_filter,
    )
    return _Prepared(generator, training_set)


def _train(context: Context, prepared: _Prepared) -> None:
    """Train in this process, alone or as one of several; the first one exports the generator."""
    options = context.options
    probe = _new_probe(context) if options.probe.interval and is_main_process() else None

    def on_step(metrics: Metrics) -> None:
        context.progress(int(metrics["step"]), options.num_steps, _status(metrics))

    def on_probe(state: TrainingState) -> Metrics:
        if probe is None:
            return {}
        if options.perception_weight > 0:
            probe.draw_masks(state, prepared.training_set, options)
        return probe.sample(state)

    train_generator(
        prepared.generator,
        prepared.training_set,
        options,
        context.work,
        context.key,
        on_step=on_step,
        on_probe=on_probe,
    )
    if is_main_process():
        save_generator(prepared.generator, context.out / "generator")


def _train_as_one_of_several(context: Context, plan: None) -> None:
    """Train with a generator and images of this process' own; all follows from the options."""
    images = _images(context)
    _train(context, _prepare(context, images, _new_generator(context, images)))


def _status(metrics: Metrics) -> str:
    return f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} images/s"


def _new_probe(context: Context) -> GeneratorProbe:
    options, dataset = context.options, Dataset(context.inputs["ingest"])
    attributes = pq.read_table(context.inputs["attributes"] / ATTRIBUTES_NAME)
    layouts = read_layouts(dataset, attributes, "val", options.protocol)
    detector = context.inputs.get("detector")
    return GeneratorProbe(
        options.probe,
        evenly_spaced(layouts, options.probe.num_layouts),
        detector / "detector" if detector else None,
        context.out / "probes",
    )


def _new_generator(context: Context, images: _Images) -> Generator:
    """The pre-trained one where there is one, else a base model that learns of layouts."""
    if "pretrained" in context.inputs:
        return load_generator(context.inputs["pretrained"] / "generator")
    options, categories = context.options, Dataset(context.inputs["ingest"]).categories
    grid = LocationGrid(options.location_grid, options.location_grid, options.binning)
    return prepare_generator(
        _base_model(context, images, [item.name for item in categories]),
        categories,
        options.layout_conditioning,
        grid,
        options.overflow,
        resolution=options.resolution,
        perception_attributes=options.perception_attributes,
        location_embedding=options.location_embedding,
    )


def _base_model(context: Context, images: _Images, names: list[str]) -> StableDiffusion:
    """The base model; a new one is made once, in the work folder."""
    shape, folder = context.options.base_model, context.work / "base_model"
    if not isinstance(shape, NewModelConfig):
        if Path(shape).is_dir():
            return load_base_model(shape)
        return load_base_model(shape, context.foreign["base_model"].rpartition("@")[2])
    if not folder.exists():
        chosen = evenly_spaced(images.layouts, _AUTOENCODER_IMAGES)
        pixels = _squares(context, [images.paths[item.image_id] for item in chosen])
        unfinished = context.work / "base_model.tmp"
        seed = context.options.seed
        model = create_base_model(shape, pixels, names, seed, context.progress)
        save_base_model(model, unfinished)
        durable_rename(unfinished, folder)
    return load_base_model(str(folder))


def _squares(context: Context, paths: Sequence[Path]) -> UInt8[np.ndarray, "images side side 3"]:
    """Images squashed to the training's squares."""
    options, squares = context.options, []
    read = partial(read_square, resolution=options.resolution, resize_filter=options.resize_filter)
    with ThreadPoolExecutor(context.num_workers) as pool:
        for square in pool.map(read, paths):
            squares.append(square)
            context.progress(len(squares), len(paths), "images read")
    return np.stack(squares)


def _count_omitted(generator: Generator, layouts: list[Layout]) -> int:
    omitted = {layout.image_id: generator.encoder.prompt(layout).omitted for layout in layouts}
    omitted = {image_id: indices for image_id, indices in omitted.items() if indices}
    for image_id, indices in omitted.items():
        logger.info("image %d: objects %s do not fit the prompt", image_id, list(indices))
    return sum(map(len, omitted.values()))


def _summary_rows(metrics: list[Metrics]) -> list[dict[str, float | None]]:
    """Average the metrics over equal stretches of the training; None where there are none."""
    names = [name for name in dict.fromkeys(k for item in metrics for k in item) if name != "step"]
    rows = []
    for part in np.array_split(np.array(metrics, dtype=object), _ROWS_SHOWN):
        if len(part):
            values = {name: [item[name] for item in part if name in item] for name in names}
            means = {name: float(np.mean(v)) if v else None for name, v in values.items()}
            rows.append({"step": int(part[-1]["step"]), **means})
    return rows


def _pictures(out: Path) -> list[str]:
    """Sections of the card: the first and the last probe, the last masks."""
    samples = sorted((out / "probes").glob("step-*.png"))
    masks = sorted((out / "probes").glob("masks-*.png"))
    chosen = dict.fromkeys([*samples[:1], *samples[-1:], *masks[-1:]])
    return [
        f"## {_CAPTIONS[path.name.partition('-')[0]]}, step {int(path.stem.partition('-')[2])}\n\n"
        + markdown_picture(np.asarray(Image.open(path)), path.stem, num_pictures=len(chosen))
        for path in chosen
    ]


if __name__ == "__main__":
    join_by_command(Context, _train_as_one_of_several)
