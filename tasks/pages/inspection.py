"""One HTML page that shows a data set: what is in it, what is hard in it, what is wrong with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

from data.attributes.calibration import (
    by_cause,
    by_class,
    by_crowding,
    by_size,
    hard_share,
    scored_things,
)
from data.errors import InvalidDataset
from data.ingest.ingestion import write_tables
from data.ingest.options import IngestConfig, SplitConfig
from data.ingest.refusals import NUM_EXAMPLES
from data.layouts.gallery import (
    contact_sheet,
    data_uri,
    draw_layout,
    draw_masks,
    in_rows,
    png_bytes,
)
from data.layouts.layout import Layout, evenly_spaced, read_layouts
from data.vocabulary.images import read_square
from data.vocabulary.splits import Split, note_places
from data.vocabulary.tables import ATTRIBUTES, Dataset
from tasks.pages.html import write_page
from tasks.pages.plots import figure_png

_NUM_IMAGES = 24
_COLUMNS = 6
_SIDE = 208
"""Of an image on the page, pixels."""

_CLASSES_SHOWN = 100

_BODY = """{{ table(counts) }}
<h2>Problems found</h2>
{% for text in warnings %}<p class="missing">{{ text }}</p>
{% endfor %}
{%- if problems %}{{ table(problems) }}{% elif not warnings %}<p>None.</p>{% endif %}
<h2>Classes and sizes of things</h2>
<p><img src="{{ histograms }}" alt="objects by class and by size"></p>
{% for title, rows in shares.items() %}<h2>{{ title }}</h2>
{{ table(rows) }}
{% else %}<p>No attributes: <code>detdiffusion run</code> measures them.</p>
{% endfor %}
<h2>{{ num_images }} images with boxes and masks
({{ "green easy, red hard" if shares else "no attributes" }})</h2>
<p><img src="{{ gallery }}" alt="images with boxes and masks"></p>
"""


def ingest_file(
    annotations: Path, images: Path, out: Path, num_workers: int
) -> tuple[Dataset, list[str]]:
    """Read one COCO file into tables in a folder, as split `train`; returns these, and warnings."""
    out.mkdir(exist_ok=True)
    split = SplitConfig(instances=annotations, images=images)
    summary = write_tables(IngestConfig(), {"train": split}, out, num_workers)
    note_places(out, {"train": images})
    return Dataset(out), summary["warnings"]


def write_inspection(
    dataset: Dataset,
    attributes: Path | None,
    page: Path,
    title: str,
    warnings: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        attributes: `attributes.parquet` of the data set; None where there are none.
        warnings: of what is likely wrong with it.

    Raises:
        InvalidDataset: the attributes are no such table or belong to another data set, or an image
            cannot be read.
    """
    table = None if attributes is None else read_attributes(attributes)
    split: Split = "train"
    layouts = evenly_spaced(read_layouts(dataset, table, split), _NUM_IMAGES)
    write_page(
        page,
        title,
        _BODY,
        counts=_counts(dataset, table),
        warnings=warnings,
        problems=_problems(dataset),
        histograms=data_uri(_histograms(dataset)),
        shares={} if table is None else _shares(dataset, table, split),
        num_images=len(layouts),
        gallery=data_uri(png_bytes(_gallery(dataset, layouts, split))),
    )


def read_attributes(path: Path) -> pa.Table:
    """Read a table with schema `ATTRIBUTES`.

    Raises:
        InvalidDataset: it is none.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidDataset(f"{path} is no attributes table: {error}") from error
    missing = set(ATTRIBUTES.names) - set(table.column_names)
    if missing:
        raise InvalidDataset(
            f"{path} is no attributes table: it lacks {', '.join(sorted(missing))}"
        )
    return table


def _counts(dataset: Dataset, attributes: pa.Table | None) -> list[dict[str, Any]]:
    rows = []
    for split in sorted(dataset.images["split"].unique().to_pylist()):
        of_split = pc.field("split") == split
        objects = dataset.objects.select(["split", "is_thing", "is_crowd"]).filter(of_split)
        things = objects.filter(pc.field("is_thing"))
        row: dict[str, Any] = {
            "split": split,
            "images": dataset.images.filter(of_split).num_rows,
            "things": things.num_rows,
            "of them crowds": pc.sum(things["is_crowd"]).as_py(),
            "stuff": objects.num_rows - things.num_rows,
            "thing classes": len(dataset.things),
        }
        if attributes is not None:
            row["share of hard"] = hard_share(attributes.filter(of_split))
        rows.append(row)
    return rows


def _problems(dataset: Dataset) -> list[dict[str, Any]]:
    """The ingest report: reason, count and the first records concerned."""
    by_reason = {
        reason: dataset.refused.filter(pc.field("reason") == reason)["record"]
        for reason in dataset.refused["reason"].unique().to_pylist()
    }
    return [
        {
            "reason": reason,
            "count": len(found),
            "first": ", ".join(found[:NUM_EXAMPLES].to_pylist()),
        }
        for reason, found in by_reason.items()
    ]


def _shares(dataset: Dataset, attributes: pa.Table, split: Split) -> dict[str, Any]:
    scored = scored_things(dataset, attributes, split)
    tables = {
        "Easy and hard by size": by_size(scored),
        "By crowding": by_crowding(scored),
        "By recorded cause of difficulty": by_cause(scored),
        "By class": by_class(scored, dataset.things),
    }
    return {title: rows for title, rows in tables.items() if rows}


def _histograms(dataset: Dataset) -> bytes:
    """Bars of objects by class, most first, and a histogram of the objects' sides; PNG."""
    things = dataset.objects.select(["is_thing", "category_id", "area"])
    things = things.filter(pc.field("is_thing"))
    labels, counts = np.unique(things["category_id"].to_numpy(), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_CLASSES_SHOWN]
    names = [dataset.things[labels[i]] for i in order]
    figure, (classes, sizes) = plt.subplots(1, 2, figsize=(12, 4), width_ratios=[2, 1])
    classes.bar(range(len(names)), counts[order])
    classes.set_xticks(range(len(names)), names, rotation=90, fontsize=9 if len(names) < 40 else 5)
    shown = "" if len(labels) <= _CLASSES_SHOWN else f", {_CLASSES_SHOWN} of {len(labels)}"
    classes.set(title=f"objects by class{shown}")
    sides = np.sqrt(np.maximum(things["area"].to_numpy(), 1))
    sizes.hist(sides, bins=np.geomspace(sides.min(), max(sides.max(), sides.min() + 1), 40))
    sizes.set(xscale="log", title="√area, pixels")
    for bound in (32, 96):
        sizes.axvline(bound, color="grey", linestyle=":")
    return figure_png(figure)


def _gallery(dataset: Dataset, layouts: list[Layout], split: Split) -> np.ndarray:
    paths = dict(dataset.image_paths(split))
    pictures = [
        draw_layout(draw_masks(read_square(paths[item.image_id], _SIDE), item), item, 1)
        for item in layouts
    ]
    return contact_sheet(in_rows(pictures, _COLUMNS))
