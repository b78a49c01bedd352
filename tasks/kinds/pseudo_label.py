"""Kind `pseudo-label`: detections that a detector is sure of, as labels of images that have none."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.attributes.options import PseudoLabelConfig
from data.attributes.pseudo_labels import pseudo_objects, sure_detections
from data.coco.export import export_boxes
from data.layouts.gallery import split_sheet
from data.vocabulary.tables import Dataset, write_table
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.pages.cards import markdown_picture, markdown_table, write_card
from tasks.pages.detections import DETECTIONS_NAME

_SCORES = (0.3, 0.5, 0.7, 0.9)


def run(context: StepContext[PseudoLabelConfig]) -> Summary:
    """Write the tables of a data set whose images stay where they are, and its COCO file."""
    labelled, unlabelled, out = context.inputs["ingest"], context.inputs["unlabelled"], context.out
    threshold = context.options.score_threshold
    things, images = Dataset(labelled).things, Dataset(unlabelled).images
    found = pq.read_table(context.inputs["detections"] / DETECTIONS_NAME)
    kept, dropped = sure_detections(found, images, things, threshold)
    shutil.copyfile(labelled / "categories.parquet", out / "categories.parquet")
    shutil.copyfile(unlabelled / "images.parquet", out / "images.parquet")
    write_table(pseudo_objects(kept), out / "objects.parquet")
    dataset = Dataset(out, images_of=unlabelled)
    export_boxes(out, "unlabelled", dataset.instances_file("unlabelled"), context.num_workers)
    without = 1 - len(np.unique(kept["image_id"])) / images.num_rows
    write_card(
        out,
        "Pseudo-labels",
        f"{kept.num_rows} boxes in {images.num_rows} images; {without:.1%} of the images have none.",
        markdown_table(_counts(kept, things, threshold)),
        "## Detections left out",
        markdown_table([{"reason": reason, "count": count} for reason, count in dropped.items()]),
        "## Images with their boxes",
        markdown_picture(
            split_sheet(dataset, "unlabelled"), "unlabelled images with their pseudo-labels"
        ),
    )
    return {
        "images": images.num_rows,
        "boxes": kept.num_rows,
        "share_without_box": without,
        "left_out": dropped,
        WARNINGS: []
        if kept.num_rows
        else [f"no detection is kept: lower pseudo_labels.score_threshold, {threshold:g}"],
    }


def _counts(kept: pa.Table, things: dict[int, str], threshold: float) -> list[dict[str, str | int]]:
    """Boxes by class, and how many of them score above some limits beyond the threshold."""
    ids, scores = kept["category_id"].to_numpy(), kept["score"].to_numpy()
    rows = {name: scores[ids == key] for key, name in things.items()} | {"all": scores}
    return [
        {
            "class": name,
            "boxes": len(own),
            **{
                f"score above {limit:g}": int((own > limit).sum())
                for limit in _SCORES
                if limit > threshold
            },
        }
        for name, own in rows.items()
    ]
