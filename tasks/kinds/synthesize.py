"""Kind `synthesize`: a synthetic COCO data set from the real layouts at a chosen difficulty."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data.attributes.options import ATTRIBUTES_NAME
from data.attributes.overrides import override_attributes, read_overrides
from data.coco.files import write_coco
from data.coco.image_sets import SyntheticSet
from data.layouts.gallery import layout_sheet
from data.layouts.layout import (
    Layout,
    count_objects,
    dataset_selection,
    evenly_spaced,
    few_layouts,
    image_seed,
    read_layouts,
    unseen_things,
)
from data.layouts.protocols import published_counts
from data.vocabulary.boxes import area, xyxy_to_xywh
from data.vocabulary.tables import Dataset, write_table
from models.devices import settled_precision
from models.generator.modules import Generator, load_generator
from models.generator.options import SamplingConfig, SyntheticSetOptions
from models.generator.sampling import sample_batch
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_picture, markdown_table, write_card

_PICTURES = 16

Context = StepContext[SyntheticSetOptions]


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


def run(context: Context) -> Summary:
    """Generate the set; finished batches survive a crash."""
    options = context.options
    dataset = Dataset(context.inputs["ingest"])
    generator = load_generator(context.inputs["generator"] / "generator")
    images = _planned(context, dataset)
    synthetic = SyntheticSet(context.out)
    sampling = options.sampling.model_copy(
        update={
            "mixed_precision": settled_precision(context.work, options.sampling.mixed_precision)
        }
    )
    done = 0
    for count in _generate(generator, images, sampling, synthetic.image_folder):
        done += count
        context.progress(done, len(images), "images")
    _describe(generator, dataset, images, synthetic)
    counts = {"images": len(images), "objects": count_objects(item.layout for item in images)}
    chosen = _chosen_layouts(dataset, options)
    sheet = layout_sheet(
        (synthetic.image_folder / item.file_name, item.layout) for item in images[:_PICTURES]
    )
    write_card(
        context.out,
        f"Synthetic data set: {options.split}, {options.policy}",
        markdown_table([counts]),
        f"## Layouts\n\n{_warnings(dataset, options, chosen)}{markdown_table([chosen])}",
        markdown_picture(sheet, "generated images with the boxes asked for"),
    )
    return {
        "counts": counts,
        "layouts": chosen,
        "precision": sampling.mixed_precision,
        "batch_size": sampling.batch_size,
    }


def _planned(context: Context, dataset: Dataset) -> list[SyntheticImage]:
    options = context.options
    options.check(dataset)
    attributes = pq.read_table(context.inputs["attributes"] / ATTRIBUTES_NAME)
    if options.attribute_overrides:
        overrides = read_overrides(options.attribute_overrides)
        attributes = override_attributes(attributes, overrides, options.split)
    layouts = read_layouts(dataset, attributes, options.split, options.protocol)
    ids = {name: category_id for category_id, name in dataset.things.items()}
    of_categories = {ids[name]: policy for name, policy in options.class_policies.items()}
    jobs = [
        (layout.with_policy(options.policy, of_categories), repeat)
        for layout in evenly_spaced(layouts, options.num_layouts or len(layouts))
        for repeat in range(options.images_per_layout)
    ]
    return [
        SyntheticImage(
            image_id=index + 1,
            layout=layout,
            repeat=repeat,
            seed=image_seed(options.sampling.seed, layout.image_id, repeat),
        )
        for index, (layout, repeat) in enumerate(jobs)
    ]


def _warnings(dataset: Dataset, options: SyntheticSetOptions, chosen: Mapping[str, Any]) -> str:
    """What the card says before the counts: few layouts are left, or such as training did not see."""
    said = (
        few_layouts(chosen["images"], len(dataset.split_images(options.split))),
        unseen_things(dataset, options.split, options.protocol, options.trained_on),
    )
    return "".join(f"**Mind that {text}.**\n\n" for text in said if text)


def _chosen_layouts(dataset: Dataset, options: SyntheticSetOptions) -> dict[str, Any]:
    """Counts of what is left of the split and left out, with a named protocol's published ones."""
    protocol = options.protocol
    published = published_counts(protocol)
    return {
        **({"published": published} if published else {}),
        **dataset_selection(dataset, options.split, protocol).counts(),
    }


def _generate(
    generator: Generator, images: list[SyntheticImage], config: SamplingConfig, folder: Path
) -> Iterator[int]:
    """Write the image files batch by batch, skipping finished batches; yield images per batch."""
    folder.mkdir(exist_ok=True)
    for unfinished in folder.glob("*.tmp"):
        unfinished.unlink()
    for start in range(0, len(images), config.batch_size):
        batch = images[start : start + config.batch_size]
        paths = [folder / item.file_name for item in batch]
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
    generator: Generator, dataset: Dataset, images: list[SyntheticImage], synthetic: SyntheticSet
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
    write_coco(synthetic.instances, pictures, annotations, dataset.things)
    write_table(pa.Table.from_pylist(rows), synthetic.provenance_file)
