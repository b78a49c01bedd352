"""Stage `extract-attributes`: detector inference and easy/hard labels."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.attributes import extract_attributes
from data.layouts import PerceptionAttribute, evenly_spaced, read_layouts
from data.tables import Dataset, Split, write_table
from models.config import AttributeStageConfig, ScoringConfig
from models.detector import Detector, detections_table
from tasks.cards import layout_sheet, markdown_picture, markdown_table, write_card
from tasks.context import StepContext, Summary

_SPLITS: tuple[Split, ...] = ("train", "val")


def run(context: StepContext[AttributeStageConfig]) -> Summary:
    """Write `detections.parquet` and `attributes.parquet` for both splits."""
    config = context.config
    dataset = Dataset(context.inputs["ingest"])
    detections = _detect(context, config.scoring, dataset)
    write_table(detections, context.out / "detections.parquet")
    attributes = pa.concat_tables(
        [extract_attributes(dataset, detections, name, config.labelling) for name in _SPLITS]
    )
    write_table(attributes, context.out / "attributes.parquet")
    by_class = _by_class(dataset, attributes)
    shares = {name: _hard_share(attributes.filter(pc.field("split") == name)) for name in _SPLITS}
    write_card(
        context.out,
        "Perception-aware attributes",
        markdown_table([{"split": name, "share of hard": share} for name, share in shares.items()]),
        "## By class (training images)",
        markdown_table(by_class),
        "## Validation images (green easy, red hard)",
        markdown_picture(_sheet(dataset, attributes), "validation images with attributes"),
    )
    return {"hard_share": shares, "by_class": by_class}


def _detect(
    context: StepContext[AttributeStageConfig], config: ScoringConfig, dataset: Dataset
) -> pa.Table:
    detector = Detector.load(context.inputs["train-detector"] / "detector")
    total = dataset.images.num_rows
    tables, done = [], 0
    for split in _SPLITS:
        found = []
        for item in detector.detect(dataset.image_paths(split), config.batch_size):
            found.append(item)
            done += 1
            context.progress(done, total, "images scored")
        tables.append(detections_table(split, found, "train-detector"))
    return pa.concat_tables(tables).filter(pc.field("score") >= config.score_threshold)


def _hard_share(attributes: pa.Table) -> float:
    hard = pc.equal(attributes["attribute"], str(PerceptionAttribute.HARD))
    return float(pc.mean(hard.cast(pa.float64())).as_py())


def _by_class(dataset: Dataset, attributes: pa.Table) -> list[dict[str, object]]:
    train = attributes.filter(pc.field("split") == "train")
    rows = []
    for category_id, name in dataset.things.items():
        of_class = train.filter(pc.field("category_id") == category_id)
        if of_class.num_rows:
            share = _hard_share(of_class)
            rows.append({"class": name, "objects": of_class.num_rows, "share of hard": share})
    return rows


def _sheet(dataset: Dataset, attributes: pa.Table) -> np.ndarray:
    paths = dict(dataset.image_paths("val"))
    layouts = evenly_spaced(read_layouts(dataset, attributes, "val"), 24)
    return layout_sheet((paths[item.image_id], item) for item in layouts)
