"""Kind `synthesize`: a synthetic COCO data set of real or new layouts at a chosen difficulty."""

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import fmean
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
)
from data.layouts.options import published_counts
from data.layouts.variation import new_layouts
from data.layouts.weakness import Weakness
from data.scenes.layout_scene import draw_layout
from data.vocabulary.boxes import area, xyxy_to_xywh
from data.vocabulary.tables import Dataset, write_table
from models.devices import settled_precision
from models.generator.drawing_options import SamplingConfig, SyntheticSetOptions
from models.generator.modules import Generator, compile_blocks, load_generator
from models.generator.sampling import (
    Picture,
    draw_pictures,
    generated_size,
    write_picture,
)
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.execution.shards import Make, run_shards
from tasks.pages.cards import markdown_picture, markdown_table, write_card

_PICTURES = 16
_SHARD_SIZE = 64
"""Images; no batch is larger."""

_NOTES = "notes.json"

Context = StepContext[SyntheticSetOptions]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticImage(Picture):
    """One image to be drawn; its layout has the attributes to ask for and the real image's id.

    Attributes:
        image_id: id in the synthetic data set.
        repeat: 0 for the layout's first image.
        hard_share: of real things of its things' classes and sizes; None where layouts are not aimed, or
            have no thing.
    """

    image_id: int
    repeat: int
    hard_share: float | None

    @property
    def file_name(self) -> str:
        """Name of the image file."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class _Labelled:
    """An image that is drawn.

    Attributes:
        item: what was to be drawn.
        annotations: COCO annotations without ids.
        provenance: what is to be said of it beside what was to be drawn.
    """

    item: SyntheticImage
    annotations: list[dict[str, Any]]
    provenance: dict[str, Any]


def run(context: Context) -> Summary:
    """Draw the set; finished shards survive a crash."""
    options = context.options
    dataset = Dataset(context.inputs["ingest"])
    synthetic = SyntheticSet(context.out)
    synthetic.image_folder.mkdir(exist_ok=True)
    labelled, facts = _drawn(context, dataset, synthetic.image_folder)
    _describe(dataset, labelled, options, synthetic)
    images = [image.item for image in labelled]
    counts = {"images": len(images), "objects": count_objects(item.layout for item in images)}
    what = {"scenes": "hidden objects", "generator": "objects that prompts had no room for"}
    counts[what[options.drawn_by]] = sum(image.provenance["num_omitted"] for image in labelled)
    chosen = _chosen_layouts(dataset, options)
    warnings = _warnings(dataset, options, chosen)
    shares = [item.hard_share for item in images if item.hard_share is not None]
    if options.layout_source == "aimed" and not any(shares):
        warnings.append("no real thing is hard, so that the layouts are aimed at nothing")
    mind = "".join(f"**Mind that {text}.**\n\n" for text in warnings)
    sheet = layout_sheet((item.path, item.layout) for item in images[:_PICTURES])
    how: dict[str, Any] = {"drawn by": options.drawn_by, "layouts": options.layout_source}
    if options.strength < 1:
        how["strength"] = options.strength
    if shares:
        how["hard share of such real things, mean of images"] = f"{fmean(shares):.2f}"
    write_card(
        context.out,
        f"Synthetic data set: {options.split}, {options.policy}",
        markdown_table([how | counts]),
        f"## Layouts\n\n{mind}{markdown_table([chosen])}",
        markdown_picture(sheet, "generated images with the boxes asked for"),
    )
    return {"counts": counts, "layouts": chosen, **facts, WARNINGS: warnings}


def _drawn(
    context: Context, dataset: Dataset, folder: Path
) -> tuple[list[_Labelled], dict[str, Any]]:
    """Draw the images; return them in their order, and how the generator drew them."""
    options, images = context.options, _planned(context, dataset, folder)
    prepare, facts = _renderer, dict[str, Any]()
    if options.drawn_by == "generator":
        given = options.sampling
        precision = settled_precision(context.work, given.mixed_precision)
        sampling = given.model_copy(update={"mixed_precision": precision})
        prepare = partial(_drawer, context.inputs["generator"] / "generator", options, sampling)
        facts = {"precision": precision, "batch_size": min(given.batch_size, _SHARD_SIZE)}
    shards = run_shards(
        context,
        prepare,
        images,
        _SHARD_SIZE,
        name=attrgetter("image_id"),
        unit="images",
        on_gpu=options.drawn_by == "generator",
    )
    for picture in (path for shard in shards for path in shard.glob("*.png")):
        picture.replace(folder / picture.name)
    notes = (note for shard in shards for note in json.loads((shard / _NOTES).read_text()))
    return [_read(item, note) for item, note in zip(images, notes, strict=True)], facts


def _read(item: SyntheticImage, note: list[Any]) -> _Labelled:
    """An image with what was noted where it was drawn."""
    size, annotations, provenance = note
    return _Labelled(replace(item, size=tuple(size)), annotations, provenance)


def _note(drawn: Iterable[_Labelled], shard: Path) -> None:
    notes = [(image.item.size, image.annotations, image.provenance) for image in drawn]
    (shard / _NOTES).write_text(json.dumps(notes))


def _drawer(
    folder: Path, options: SyntheticSetOptions, sampling: SamplingConfig
) -> Make[SyntheticImage]:
    """Load a generator to draw with.

    Args:
        sampling: in the precision that was settled.
    """
    generator = load_generator(folder)
    if options.torch_compile:
        compile_blocks(generator.model.unet)

    def draw(images: Sequence[SyntheticImage], shard: Path) -> None:
        placed = [replace(item, path=shard / item.file_name) for item in images]
        if options.image_size == "generator":
            resolution = generator.model.resolution
            placed = [replace(item, size=generated_size(*item.size, resolution)) for item in placed]
        deque(draw_pictures(generator, placed, sampling, options.strength), maxlen=0)
        _note((_asked_for(generator, item) for item in placed), shard)

    return draw


def _renderer() -> Make[SyntheticImage]:
    return _render


def _render(images: Sequence[SyntheticImage], shard: Path) -> None:
    """Draw with the renderer of Scenes, which knows what is seen of an object."""
    labelled = []
    for item in images:
        drawn = draw_layout(item.layout, item.seed)
        write_picture(replace(item, path=shard / item.file_name), drawn.image)
        labelled.append(_Labelled(item, drawn.annotations, {"num_omitted": drawn.num_hidden}))
    _note(labelled, shard)


def _planned(context: Context, dataset: Dataset, folder: Path) -> list[SyntheticImage]:
    """What is to be drawn, in the size of the layouts."""
    options = context.options
    options.check(dataset)
    attributes = pq.read_table(context.inputs["attributes"] / ATTRIBUTES_NAME)
    if options.attribute_overrides:
        overrides = read_overrides(options.attribute_overrides)
        attributes = override_attributes(attributes, overrides, options.split)
    real = read_layouts(dataset, attributes, options.split, options.protocol)
    layouts = _numbered_layouts(real, options)
    weakness = Weakness.measured(real) if options.layout_source == "aimed" else None
    sources = dict(dataset.image_paths(options.split)) if options.strength < 1 else {}
    ids = {name: category_id for category_id, name in dataset.things.items()}
    of_categories = {ids[name]: policy for name, policy in options.class_policies.items()}
    jobs = [
        (number, layout.with_policy(options.policy, of_categories), repeat)
        for number, layout in layouts
        for repeat in range(options.images_per_layout)
    ]
    return [
        SyntheticImage(
            image_id=index + 1,
            layout=layout,
            repeat=repeat,
            hard_share=weakness.mean(layout) if weakness else None,
            seed=image_seed(options.sampling.seed, number, repeat),
            size=(layout.width, layout.height),
            path=folder / f"{index + 1:012d}.png",
            source=sources.get(layout.image_id),
        )
        for index, (number, layout, repeat) in enumerate(jobs)
    ]


def _numbered_layouts(
    layouts: list[Layout], options: SyntheticSetOptions
) -> list[tuple[int, Layout]]:
    """The layouts to draw, with what tells them apart: the real image's id, or a made one's number."""
    count = options.num_layouts or len(layouts)
    if options.layout_source == "real":
        return [(layout.image_id, layout) for layout in evenly_spaced(layouts, count)]
    made = new_layouts(
        layouts,
        options.layout_source,
        count,
        seed=options.sampling.seed,
        min_area_fraction=options.protocol.min_area_fraction,
    )
    return list(enumerate(made))


def _warnings(
    dataset: Dataset, options: SyntheticSetOptions, chosen: Mapping[str, Any]
) -> list[str]:
    """What is said before the counts: few layouts are left, or such as training did not see."""
    said = (
        few_layouts(chosen["images"], len(dataset.split_images(options.split))),
        options.unseen_things(dataset),
    )
    return [text for text in said if text]


def _chosen_layouts(dataset: Dataset, options: SyntheticSetOptions) -> dict[str, Any]:
    """Counts of what is left of the split and left out, with a named protocol's published ones."""
    protocol = options.protocol
    published = published_counts(protocol)
    return {
        **({"published": published} if published else {}),
        **dataset_selection(dataset, options.split, protocol).counts(),
    }


def _asked_for(generator: Generator, item: SyntheticImage) -> _Labelled:
    """Label a generated image with the boxes asked for.

    What the canvas shows is labelled even where the prompt had no room for it.
    """
    layout, prompt, boxes = item.layout, generator.encoder.prompt(item.layout), item.boxes
    shown = prompt.objects if generator.encoder.conditioning == "tokens" else None
    annotations = [
        {
            "category_id": int(layout.category_ids[index]),
            "bbox": xyxy_to_xywh(boxes[index]).tolist(),
            "area": float(area(boxes[index])),
            "iscrowd": 0,
            "attribute": layout.attributes[index],
        }
        for index in (range(len(layout.boxes)) if shown is None else sorted(shown))
        if layout.is_thing[index]
    ]
    return _Labelled(item, annotations, {"prompt": prompt.text, "num_omitted": len(prompt.omitted)})


def _describe(
    dataset: Dataset,
    labelled: list[_Labelled],
    options: SyntheticSetOptions,
    synthetic: SyntheticSet,
) -> None:
    """Write the COCO instances file and the per-image provenance."""
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    made: dict[str, Any] = {}
    if options.layout_source != "real":
        made["layout_source"] = options.layout_source
    if options.strength < 1:
        made["strength"] = options.strength
    for image in labelled:
        item = image.item
        size = dict(zip(("width", "height"), item.size, strict=True))
        pictures.append({"id": item.image_id, "file_name": item.file_name, **size})
        annotations += [
            {"id": len(annotations) + number, "image_id": item.image_id, **annotation}
            for number, annotation in enumerate(image.annotations, 1)
        ]
        rows.append(
            {
                "image_id": item.image_id,
                "file_name": item.file_name,
                "source_image_id": item.layout.image_id,
                "repeat": item.repeat,
                "seed": item.seed,
                **({"hard_share": item.hard_share} if options.layout_source == "aimed" else {}),
                **image.provenance,
                **made,
            }
        )
    write_coco(synthetic.instances, pictures, annotations, dataset.things)
    write_table(pa.Table.from_pylist(rows), synthetic.provenance_file)
