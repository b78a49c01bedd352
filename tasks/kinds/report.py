"""Kind `report`: one self-contained page about a run."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data.artifacts.options import Options
from data.attributes.options import ATTRIBUTES_NAME
from data.coco.image_sets import SyntheticSet
from data.layouts.gallery import contact_sheet, draw_layout, png_bytes
from data.layouts.layout import POLICIES, AttributePolicy, evenly_spaced, read_layouts
from data.vocabulary.images import read_square
from data.vocabulary.tables import Dataset
from models.training.metrics_file import METRICS_NAME, read_metrics
from tasks.execution.context import StepContext, Summary
from tasks.kinds.measure import FIDELITY_NAME, TRAINABILITY_NAME
from tasks.pages.cards import markdown_picture, markdown_table, write_card
from tasks.pages.report_page import loss_curves, write_report

_GALLERY_COLUMNS = 10
_THUMBNAIL = 64

Context = StepContext[Options]


def run(context: Context) -> Summary:
    """Write `report.html`."""
    measures = context.manifest("measures").summary
    sections = {
        f"Fidelity (Fréchet distance by {measures['extractor']}; detection score by the scorer)": (
            pq.read_table(context.inputs["measures"] / FIDELITY_NAME).to_pylist()
        ),
        "Trainability (COCO metrics on real validation images)": (
            pq.read_table(context.inputs["measures"] / TRAINABILITY_NAME).to_pylist()
        ),
    }
    policies = [name for name in POLICIES if f"sets/{name}" in context.inputs]
    gallery = _gallery(context, policies)
    write_report(
        context.out / "report.html",
        results=measures["results"],
        tables=sections | {"Steps": _step_rows(context)},
        curves=loss_curves(read_metrics(context.inputs["generator"] / METRICS_NAME)),
        gallery=png_bytes(gallery),
        gallery_rows=["real", *policies],
    )
    write_card(
        context.out,
        "Evaluation",
        *(f"## {title}\n\n{markdown_table(rows)}" for title, rows in sections.items()),
        f"## {', '.join(['real', *policies])}",
        markdown_picture(gallery, "the same layouts, real and generated"),
    )
    return {"results": measures["results"]}


def _gallery(context: Context, policies: list[AttributePolicy]) -> np.ndarray:
    """Rows real and one for each set; columns the same layouts, with boxes."""
    dataset = Dataset(context.inputs["ingest"])
    attributes = pq.read_table(context.inputs["attributes"] / ATTRIBUTES_NAME)
    layouts = {item.image_id: item for item in read_layouts(dataset, attributes, "val")}
    images = {
        name: SyntheticSet(context.inputs[f"sets/{name}"]).first_images() for name in policies
    }
    common = [key for key in images[policies[0]] if all(key in item for item in images.values())]
    chosen = [layouts[key] for key in evenly_spaced(common, _GALLERY_COLUMNS)]
    rows = [(dict(dataset.image_paths("val")), chosen)]
    rows += [(images[name], [item.with_policy(name) for item in chosen]) for name in policies]
    return contact_sheet(
        [
            [draw_layout(read_square(paths[i.image_id], _THUMBNAIL), i) for i in items]
            for paths, items in rows
        ]
    )


def _step_rows(context: Context) -> list[dict[str, Any]]:
    return [
        {
            "kind": manifest.kind,
            "key": manifest.key[:8],
            "seconds": manifest.seconds,
            "peak memory, GB": manifest.peak_memory_bytes / 1e9,
        }
        for manifest in context.ancestors()
    ]
