"""Kind `ingest-unlabelled`: images without labels, looked at and listed."""

from data.ingest.options import UnlabelledConfig
from data.ingest.refusals import reasons
from data.ingest.unlabelled import ingest_unlabelled
from data.vocabulary.tables import Dataset
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.pages.cards import markdown_table, write_card


def run(context: StepContext[UnlabelledConfig]) -> Summary:
    """Write the table of images and a card with their number and what was refused."""
    labelled = context.inputs.get("ingest")
    held_out = [path for _, path in Dataset(labelled).image_paths("val")] if labelled else ()
    summary = ingest_unlabelled(
        context.options, context.out, context.num_workers, context.progress, held_out
    )
    write_card(
        context.out,
        "Images without labels",
        f"{summary['images']} images",
        "## Left out",
        markdown_table(summary["refused"]),
    )
    return summary | {WARNINGS: [f"left out or mended: {x}" for x in reasons(summary["refused"])]}
