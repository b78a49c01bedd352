"""Stage `ingest`: COCO files to tables."""

import numpy as np
from PIL import Image

from data.gallery import contact_sheet, draw_layout
from data.ingest import IngestConfig, ingest
from data.layouts import evenly_spaced, read_layouts
from data.tables import Dataset
from tasks.cards import markdown_picture, markdown_table, write_card
from tasks.context import StepContext, Summary

_THUMBNAIL = 96


def run(context: StepContext[IngestConfig]) -> Summary:
    """Write the tables of a data set and a card with counts, refusals and a sheet of images."""
    config = context.config
    summary = ingest(
        config,
        context.out,
        context.num_workers,
        lambda done, total: context.progress(done, total, "images written"),
    )
    dataset = Dataset(context.out)
    write_card(
        context.out,
        "Ingested data set",
        markdown_table([{"split": name, **row} for name, row in summary["counts"].items()]),
        "## Refused",
        markdown_table(summary["refused"]),
        "## Validation images",
        markdown_picture(_sheet(dataset), "validation images with their boxes"),
    )
    return summary


def _sheet(dataset: Dataset) -> np.ndarray:
    paths = dict(dataset.image_paths("val"))
    pictures = []
    for layout in evenly_spaced(read_layouts(dataset, None, "val"), 24):
        with Image.open(paths[layout.image_id]) as image:
            thumbnail = np.asarray(image.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL)))
        pictures.append(draw_layout(thumbnail, layout, scale=1))
    return contact_sheet([pictures[start : start + 8] for start in range(0, len(pictures), 8)])
