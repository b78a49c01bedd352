"""Kind `synthesize`: a synthetic COCO data set from the real layouts at a chosen difficulty."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
from models.generator.options import SyntheticSetOptions
from models.generator.sampling import Picture, draw_pictures, generated_size
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_picture, markdown_table, write_card

_PICTURES = 16

Context = StepContext[SyntheticSetOptions]


@dataclass(frozen=True, slots=True)
class SyntheticImage(Picture):
    """One image to be generated; its layout has the attributes to ask for and the real image's id.

    Attributes:
        image_id: id in the synthetic data set.
        repeat: 0 for the layout's first image.
    """

    image_id: int
    repeat: int

    @property
    def file_name(self) -> str:
        """Name of the image file."""
        return self.path.name


def run(context: Context) -> Summary:
    """Generate the set; finished batches survive a crash."""
    options = context.options
    dataset = Dataset(context.inputs["ingest"])
    generator = load_generator(context.inputs["generator"] / "generator")
    synthetic = SyntheticSet(context.out)
    images = _planned(context, dataset, generator.model.resolution, synthetic.image_folder)
    sampling = options.sampling.model_copy(
        update={
            "mixed_precision": settled_precision(context.work, options.sampling.mixed_precision)
        }
    )
    missing = _missing(images, sampling.batch_size, synthetic.image_folder)
    done = len(images) - len(missing)
    for count in draw_pictures(generator, missing, sampling):
        done += count
        context.progress(done, len(images), "images")
    _describe(generator, dataset, images, synthetic)
    counts = {"images": len(images), "objects": count_objects(item.layout for item in images)}
    chosen = _chosen_layouts(dataset, options)
    sheet = layout_sheet((item.path, item.layout) for item in images[:_PICTURES])
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


def _planned(
    context: Context, dataset: Dataset, resolution: int, folder: Path
) -> list[SyntheticImage]:
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
            size=_file_size(layout, options, resolution),
            path=folder / f"{index + 1:012d}.png",
        )
        for index, (layout, repeat) in enumerate(jobs)
    ]


def _file_size(layout: Layout, options: SyntheticSetOptions, resolution: int) -> tuple[int, int]:
    """Width and height of an image file."""
    if options.image_size == "source":
        return layout.width, layout.height
    return generated_size(layout.width, layout.height, resolution)


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


def _missing(images: list[SyntheticImage], batch_size: int, folder: Path) -> list[SyntheticImage]:
    """Those of unfinished batches; all batches but the last are full, before and after."""
    folder.mkdir(exist_ok=True)
    for unfinished in folder.glob("*.tmp"):
        unfinished.unlink()
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    return [
        item for batch in batches if not all(item.path.exists() for item in batch) for item in batch
    ]


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
        boxes, size = item.boxes, dict(zip(("width", "height"), item.size, strict=True))
        pictures.append({"id": item.image_id, "file_name": item.file_name, **size})
        shown = prompt.objects if generator.encoder.conditioning == "tokens" else None
        for index in range(len(layout.boxes)) if shown is None else sorted(shown):
            if layout.is_thing[index]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": item.image_id,
                        "category_id": int(layout.category_ids[index]),
                        "bbox": xyxy_to_xywh(boxes[index]).tolist(),
                        "area": float(area(boxes[index])),
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
