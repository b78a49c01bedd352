"""Stage `synthesize`: synthetic COCO data sets from the real layouts at a chosen difficulty."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data.attributes import override_attributes
from data.boxes import area, xyxy_to_xywh
from data.coco import write_coco
from data.errors import InvalidConfig, InvalidDataset
from data.filters import PROTOCOLS, Protocol
from data.layouts import (
    AttributePolicy,
    Layout,
    count_objects,
    dataset_selection,
    evenly_spaced,
    image_seed,
    read_layouts,
)
from data.tables import Dataset, Split, write_table
from models.config import SamplingConfig, SynthesisConfig
from models.generator import Generator, load_generator
from models.sampling import sample_batch
from tasks.cards import layout_sheet, markdown_picture, markdown_table, write_card
from tasks.context import StepContext, Summary

TRAIN_SET = "train"
"""The set that is added to the real training images."""

POLICIES: tuple[AttributePolicy, ...] = ("origin", "easy", "hard")
"""The measured sets, each named for its policy."""

IMAGES, INSTANCES, PROVENANCE = "images", "instances.json", "provenance.parquet"
"""What a set's folder holds."""


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """One image to be generated.

    Attributes:
        image_id: id in the synthetic data set.
        layout: with the attributes to ask for; `layout.image_id` is the real image's.
        repeat: 0 for the layout's first image.
        seed: of the initial noise.
    """

    image_id: int
    layout: Layout
    repeat: int
    seed: int

    @property
    def file_name(self) -> str:
        """Name of the image file."""
        return f"{self.image_id:012d}.png"


def run(context: StepContext[SynthesisConfig]) -> Summary:
    """Generate every configured set; finished batches survive a crash."""
    config = context.config
    dataset = Dataset(context.inputs["ingest"])
    attributes = pq.read_table(context.inputs["extract-attributes"] / "attributes.parquet")
    generator = load_generator(context.inputs["train-generator"] / "generator")
    of_categories = _category_policies(dataset, config)
    for_training = _overridden(attributes, config)
    sets = {
        TRAIN_SET: _planned(
            dataset, for_training, config, "train", config.train_policy, of_categories
        )
    }
    sets |= {name: _planned(dataset, attributes, config, "val", name, {}) for name in POLICIES}
    total, done = sum(map(len, sets.values())), 0
    for name, images in sets.items():
        for count in _generate(generator, images, config.sampling, context.out / name):
            done += count
            context.progress(done, total, f"images of set {name}")
        _describe(generator, dataset, images, context.out / name)
    rows = [
        {"set": name, "images": len(images), "objects": count_objects(i.layout for i in images)}
        for name, images in sets.items()
    ]
    sheets = [f"## {name}\n\n{_sheet(context.out / name, items)}" for name, items in sets.items()]
    chosen = _chosen_layouts(dataset, config)
    tables = [markdown_table(rows), *(f"## Layouts\n\n{markdown_table([row])}" for row in chosen)]
    write_card(context.out, "Synthetic data sets", *tables, *sheets)
    return {"sets": rows, "layouts": chosen}


def _overridden(attributes: pa.Table, config: SynthesisConfig) -> pa.Table:
    path = config.attribute_overrides
    if path is None:
        return attributes
    try:
        overrides = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidDataset(f"synthesize.attribute_overrides {path}: {error}") from error
    return override_attributes(attributes, overrides, "train")


def _category_policies(dataset: Dataset, config: SynthesisConfig) -> dict[int, AttributePolicy]:
    ids = {name: category_id for category_id, name in dataset.things.items()}
    unknown = sorted(set(config.class_policies) - set(ids))
    if unknown:
        raise InvalidConfig(
            f"synthesize.class_policies names {unknown}, which are no things of the data set: {sorted(ids)}"
        )
    return {ids[name]: policy for name, policy in config.class_policies.items()}


def _planned(
    dataset: Dataset,
    attributes: pa.Table,
    config: SynthesisConfig,
    split: Split,
    policy: AttributePolicy,
    of_categories: Mapping[int, AttributePolicy],
) -> list[SyntheticImage]:
    layouts = read_layouts(dataset, attributes, split, _protocol(config, split))
    if not layouts:
        dropped = dataset_selection(dataset, split, _protocol(config, split)).dropped
        raise InvalidDataset(
            f"no {split} image has a usable layout, {dropped} were left out: change "
            f"synthesize.min_things, max_things, min_area_fraction or {split}_protocol"
        )
    counts = (config.num_train_layouts, config.images_per_train_layout)
    if split == "val":
        counts = (config.num_val_layouts, config.images_per_val_layout)
    num_layouts, num_repeats = counts
    jobs = [
        (layout.with_policy(policy, of_categories), repeat)
        for layout in evenly_spaced(layouts, num_layouts or len(layouts))
        for repeat in range(num_repeats)
    ]
    return [
        SyntheticImage(
            image_id=index + 1,
            layout=layout,
            repeat=repeat,
            seed=image_seed(config.sampling.seed, layout.image_id, repeat),
        )
        for index, (layout, repeat) in enumerate(jobs)
    ]


def _protocol(config: SynthesisConfig, split: Split) -> Protocol:
    name = config.train_protocol if split == "train" else config.val_protocol
    if name:
        return PROTOCOLS[name]
    return Protocol(config.min_area_fraction, config.min_things, config.max_things)


def _chosen_layouts(dataset: Dataset, config: SynthesisConfig) -> list[dict[str, Any]]:
    """Counts of what is left of each split and left out, with a named protocol's published ones."""
    rows = []
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        protocol = _protocol(config, split)
        published = {"published": protocol.published} if protocol.published else {}
        counts = dataset_selection(dataset, split, protocol).counts()
        rows.append({"split": split, **published, **counts})
    return rows


def _generate(
    generator: Generator, images: list[SyntheticImage], config: SamplingConfig, folder: Path
) -> Iterator[int]:
    """Write the image files batch by batch, skipping finished batches; yield images per batch."""
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    for unfinished in (folder / IMAGES).glob("*.tmp"):
        unfinished.unlink()
    for start in range(0, len(images), config.batch_size):
        batch = images[start : start + config.batch_size]
        paths = [folder / IMAGES / item.file_name for item in batch]
        if not all(path.exists() for path in paths):
            layouts, seeds = [item.layout for item in batch], [item.seed for item in batch]
            pictures = sample_batch(generator, layouts, seeds, config)
            for item, path, pixels in zip(batch, paths, pictures, strict=True):
                _write_image(Image.fromarray(pixels), item.layout, path)
        yield len(batch)


def _write_image(image: Image.Image, layout: Layout, path: Path) -> None:
    """Save at the source image's size, in one rename."""
    size = (layout.width, layout.height)
    temporary = path.with_suffix(".tmp")
    resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    resized.save(temporary, "PNG", compress_level=1)
    temporary.replace(path)


def _describe(
    generator: Generator, dataset: Dataset, images: list[SyntheticImage], folder: Path
) -> None:
    """Write the COCO instances file and the per-image provenance.

    What the canvas shows is labelled even where the prompt had no room for it.
    """
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for item in images:
        layout, prompt = item.layout, generator.encoder.prompt(item.layout)
        size = {"width": layout.width, "height": layout.height}
        pictures.append({"id": item.image_id, "file_name": item.file_name, **size})
        shown = prompt.objects if generator.encoder.conditioning == "tokens" else None
        for index in range(len(layout.boxes)) if shown is None else sorted(shown):
            if layout.is_thing[index]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": item.image_id,
                        "category_id": int(layout.category_ids[index]),
                        "bbox": xyxy_to_xywh(layout.boxes[index]).tolist(),
                        "area": float(area(layout.boxes[index])),
                        "iscrowd": 0,
                        "attribute": layout.attributes[index],
                    }
                )
        rows.append(
            {
                "image_id": item.image_id,
                "file_name": item.file_name,
                "source_image_id": layout.image_id,
                "repeat": item.repeat,
                "seed": item.seed,
                "prompt": prompt.text,
                "num_omitted": len(prompt.omitted),
            }
        )
    write_coco(folder / INSTANCES, pictures, annotations, dataset.things)
    write_table(pa.Table.from_pylist(rows), folder / PROVENANCE)


def _sheet(folder: Path, images: list[SyntheticImage]) -> str:
    sheet = layout_sheet((folder / IMAGES / item.file_name, item.layout) for item in images[:16])
    alt = "generated images with the boxes asked for"
    return markdown_picture(sheet, alt, num_pictures=1 + len(POLICIES))
