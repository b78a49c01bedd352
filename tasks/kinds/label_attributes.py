"""Kind `label-attributes`: easy or hard, from the detections of the real images."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes.calibration import (
    Rows,
    by_cause,
    by_class,
    by_crowding,
    by_size,
    easiest_and_hardest,
    hard_share,
    scored_things,
)
from data.attributes.labelling import extract_attributes
from data.attributes.options import ATTRIBUTES_NAME, AttributeConfig
from data.layouts.gallery import contact_sheet, crop, in_rows, split_sheet
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset, box_array, write_table
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.pages.cards import markdown_picture, markdown_table, write_card
from tasks.pages.detections import DETECTIONS_NAME

_SPLITS: tuple[Split, ...] = ("train", "val")
_CROPS = 16
_CROP_SIDE = 64
_NUM_PICTURES = 3
_GROUPS_SHOWN = 200
_LEAST_SHARE = 0.05
"""Of objects of either attribute."""


def run(context: StepContext[AttributeConfig]) -> Summary:
    """Write `attributes.parquet` for both splits, and what the hard objects have in common."""
    dataset = Dataset(context.inputs["ingest"])
    detections = pa.concat_tables(
        [pq.read_table(folder / DETECTIONS_NAME) for folder in context.many("detections").values()]
    )
    attributes = pa.concat_tables(
        [
            extract_attributes(dataset, detections, name, context.options, context.num_workers)
            for name in _SPLITS
        ]
    )
    write_table(attributes, context.out / ATTRIBUTES_NAME)
    things = attributes.filter(pc.field("is_thing"))
    shares = {name: hard_share(things.filter(pc.field("split") == name)) for name in _SPLITS}
    scored = scored_things(dataset, attributes, "train")
    tables = {
        "By class": by_class(scored, dataset.things),
        "By size": by_size(scored),
        "By crowding": by_crowding(scored),
        "By recorded cause of difficulty": by_cause(scored),
    }
    (context.out / "calibration.json").write_text(json.dumps(tables, indent=1))
    write_card(
        context.out,
        "Perception-aware attributes",
        markdown_table([{"split": name, "share of hard": share} for name, share in shares.items()]),
        f"{detections.num_rows} detections by: "
        + (", ".join(sorted(detections["detector"].unique().to_pylist())) or "—"),
        *(f"## {title} (training images)\n\n{_largest(rows)}" for title, rows in tables.items()),
        *_galleries(dataset, scored),
        "## Validation images (green easy, red hard)",
        markdown_picture(
            split_sheet(dataset, "val", attributes),
            "validation images with attributes",
            _NUM_PICTURES,
        ),
    )
    return {
        "hard_share": shares,
        "by_class": tables["By class"],
        WARNINGS: _says_little(shares["train"]),
    }


def _largest(rows: Rows) -> str:
    """A table of the groups, of many those with most objects."""
    if len(rows) <= _GROUPS_SHOWN:
        return markdown_table(rows)
    largest = sorted(rows, key=lambda row: -row["objects"])[:_GROUPS_SHOWN]
    left = len(rows) - _GROUPS_SHOWN
    return f"{markdown_table(largest)}\n\n{left} smaller ones stand in `calibration.json`."


def _says_little(share: float) -> list[str]:
    """What to do where next to all training objects have the same attribute."""
    if share < _LEAST_SHARE:
        what = (
            "raise extract_attributes.scoring.num_folds (a detector knows its own training images)"
        )
        what += " or extract_attributes.labelling.score_threshold"
    elif share > 1 - _LEAST_SHARE:
        what = "train the attribute detector longer, or give another one"
    else:
        return []
    return [f"{share:.1%} of the training objects are hard, so easy and hard say little: {what}"]


def _galleries(dataset: Dataset, scored: pa.Table) -> list[str]:
    """Crops of the easiest and of the hardest training objects."""
    sections = []
    for title, rows in zip(
        ("Easiest", "Hardest"), easiest_and_hardest(scored, _CROPS), strict=True
    ):
        picture = _crops(dataset, scored.take(rows))
        sections += [
            f"## {title} training objects, by IoU × score",
            markdown_picture(picture, f"crops of the {title.lower()} objects", _NUM_PICTURES),
        ]
    return sections


def _crops(dataset: Dataset, scored: pa.Table) -> np.ndarray:
    paths = dict(dataset.image_paths("train"))
    boxes = zip(scored["image_id"].to_pylist(), box_array(scored), strict=True)
    return contact_sheet(
        in_rows([crop(paths[image_id], box, _CROP_SIDE) for image_id, box in boxes])
    )
