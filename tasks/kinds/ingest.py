"""Kind `ingest`: COCO files to tables."""

from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig
from data.ingest.refusals import reasons
from data.layouts.gallery import split_sheet
from data.vocabulary.tables import Dataset
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.pages.cards import markdown_picture, markdown_table, write_card


def run(context: StepContext[IngestConfig]) -> Summary:
    """Write the tables of a data set and a card with counts, refusals and a sheet of images."""
    summary = ingest(context.options, context.out, context.num_workers, context.progress)
    write_card(
        context.out,
        "Ingested data set",
        markdown_table([{"split": name, **row} for name, row in summary["counts"].items()]),
        *(f"**{text}**" for text in summary["warnings"]),
        "## Left out or mended",
        markdown_table(summary["refused"]),
        "## Validation images",
        markdown_picture(
            split_sheet(Dataset(context.out), "val"), "validation images with their boxes"
        ),
    )
    left_out = [f"left out or mended: {text}" for text in reasons(summary["refused"])]
    return summary | {WARNINGS: [*summary["warnings"], *left_out]}
