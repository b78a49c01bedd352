"""Stage `ingest`: COCO files to tables."""

import numpy as np

from data.ingest import IngestConfig, ingest
from data.layouts import evenly_spaced, read_layouts
from data.tables import Dataset
from tasks.cards import layout_sheet, markdown_picture, markdown_table, write_card
from tasks.context import StepContext, Summary


def run(context: StepContext[IngestConfig]) -> Summary:
    """Write the tables of a data set and a card with counts, refusals and a sheet of images."""
    config = context.config
    summary = ingest(
        config,
        context.out,
        context.num_workers,
        lambda done, total: context.progress(done, total, "images"),
    )
    dataset = Dataset(context.out)
    write_card(
        context.out,
        "Ingested data set",
        markdown_table([{"split": name, **row} for name, row in summary["counts"].items()]),
        "## Left out or mended",
        markdown_table(summary["refused"]),
        "## Validation images",
        markdown_picture(_sheet(dataset), "validation images with their boxes"),
    )
    return summary


def _sheet(dataset: Dataset) -> np.ndarray:
    paths = dict(dataset.image_paths("val"))
    layouts = evenly_spaced(read_layouts(dataset, None, "val"), 24)
    return layout_sheet((paths[item.image_id], item) for item in layouts)
